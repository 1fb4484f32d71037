// Reads anchors: a Hugging Face directory (config.json, *.safetensors, optionally sharded by index) or one GGUF file, of the architectures
// that architecture.h lists; writes the Hugging Face form. Errors name file, tensor, shape found and expected; an unsupported architecture is
// UNIMPLEMENTED and lists the supported ones.
#pragma once

#include "model_worker/model/transformer.h"

namespace membank {

absl::StatusOr<AnchorWeights> LoadAnchor(const std::string& path, torch::Dtype dtype, torch::Device device = torch::kCPU);

// config.json + model.safetensors in `directory` (created), fp32 or bf16 as the tensors are. Loads in transformers.
absl::Status SaveAnchor(const AnchorWeights& weights, const std::string& directory);

}  // namespace membank
