// An anchor that nobody has trained: random tensors for a configuration, as OpenLM draws them. Matrices are normal with standard deviation
// 1/sqrt(columns), cut at three of them; the projections back into the residual stream of layer l (from 0) are divided by sqrt(2 (l + 1)); norms
// multiply by 1, biases are 0. A value is a function of seed, tensor name and position alone. Immutable; any thread.
#pragma once

#include "model_worker/model/anchor_source.h"

namespace membank {

class RandomSource : public AnchorSource {
 public:
  RandomSource(ModelConfig config, uint64_t seed) : config_(std::move(config)), seed_(seed) {}
  const ModelConfig& config() const override { return config_; }
  bool Has(const std::string& name) const override { return false; }   // nothing that the configuration does not ask for
  absl::StatusOr<torch::Tensor> Read(const std::string& name, const std::vector<int64_t>& shape, torch::Dtype dtype) const override;
  std::string Fingerprint() const override { return ""; }               // has one once it is saved

 private:
  const ModelConfig config_;
  const uint64_t seed_;
};

// The anchor's parameters, a tied head counted once. No tensor is allocated.
absl::StatusOr<uint64_t> CountParameters(const ModelConfig& config);

}  // namespace membank
