// config.json of the supported architectures, both generations of transformers (rope_theta + rope_scaling and rope_parameters; torch_dtype and
// dtype). OpenLM's is that of its own Hugging Face wrapper (open_lm/utils/transformers) with head_dim, hidden_dim and rope_theta added, which
// the paper's anchors need. Pure functions.
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "model_worker/model/transformer.h"

namespace membank {

// INVALID_ARGUMENT names the field; another architecture, activation, attention or RoPE scaling is UNIMPLEMENTED and lists what is supported.
absl::StatusOr<ModelConfig> ParseHuggingFaceConfig(const std::string& text, const std::string& where);
std::string HuggingFaceConfigText(const ModelConfig& config, torch::Dtype dtype);

}  // namespace membank
