// config.json of Hugging Face's Llama, both generations (rope_theta and rope_parameters; torch_dtype and dtype). Pure functions.
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "model_worker/model/transformer.h"

namespace membank {

// INVALID_ARGUMENT names the field; another architecture, activation, bias or RoPE scaling is UNIMPLEMENTED and lists what is supported.
absl::StatusOr<ModelConfig> ParseHuggingFaceConfig(const std::string& text, const std::string& where);
std::string HuggingFaceConfigText(const ModelConfig& config, torch::Dtype dtype);

}  // namespace membank
