// Where an anchor's configuration and tensors come from: the seam between weights.cc and the two file formats. Used by one thread.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "model_worker/model/transformer.h"

namespace membank {

inline constexpr char kOriginKey[] = "membank.origin";   // in the metadata of model.safetensors

class AnchorSource {
 public:
  virtual ~AnchorSource() = default;
  virtual const ModelConfig& config() const = 0;
  virtual bool Has(const std::string& name) const = 0;          // names as Hugging Face has them
  // The tensor in `dtype`, on the CPU, rows of q and k in Hugging Face's order. NOT_FOUND, INVALID_ARGUMENT name file and tensor.
  virtual absl::StatusOr<torch::Tensor> Read(const std::string& name, const std::vector<int64_t>& shape, torch::Dtype dtype) const = 0;
  // XXH3-128 of the configuration and every tensor's name, type, shape and bytes as they are in the file: the same whatever dtype is asked for.
  virtual std::string Fingerprint() const = 0;
  // Fingerprint of the anchor that this one was co-trained from, as SaveAnchor recorded it; empty when it was not.
  virtual std::string Origin() const { return ""; }
};

// All tensors that the configuration of `source` asks for, without fingerprint and origin.
absl::StatusOr<AnchorWeights> ReadAnchor(const AnchorSource& source, torch::Dtype dtype, torch::Device device);

absl::StatusOr<std::unique_ptr<AnchorSource>> OpenHuggingFace(const std::string& directory);
absl::StatusOr<std::unique_ptr<AnchorSource>> OpenGguf(const std::string& path);

// Consistent sizes (heads divide, positive counts); `where` names the file.
absl::Status CheckConfig(const ModelConfig& config, const std::string& where);
// One line that names every field that the forward pass depends on.
std::string CanonicalConfig(const ModelConfig& config);
std::string ShapeText(const std::vector<int64_t>& shape);       // "[2, 3]"

}  // namespace membank
