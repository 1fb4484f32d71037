#include "model_worker/train/anchor_init.h"

#include <filesystem>
#include <iterator>

#include "common/base/file.h"
#include "common/base/status_macros.h"
#include "common/text/tokenizer.h"
#include "model_worker/model/hf_config.h"
#include "model_worker/model/random_source.h"
#include "model_worker/model/weights.h"

namespace membank {
namespace {

struct Preset {
  const char* name;
  const char* config;
};

// `tiny` and `small` are for experiments on a CPU: the sizes that an hour of two cores can train. The others are the paper's (section 4).
constexpr Preset kPresets[] = {
    {"tiny", R"({"architectures": ["LlamaForCausalLM"], "num_hidden_layers": 4, "hidden_size": 128, "num_attention_heads": 4,
                 "intermediate_size": 384, "vocab_size": 512, "max_position_embeddings": 2048, "rms_norm_eps": 1e-5,
                 "rope_theta": 100000.0, "tie_word_embeddings": true})"},
    {"small", R"({"architectures": ["LlamaForCausalLM"], "num_hidden_layers": 8, "hidden_size": 256, "num_attention_heads": 8,
                  "intermediate_size": 768, "vocab_size": 512, "max_position_embeddings": 2048, "rms_norm_eps": 1e-5,
                  "rope_theta": 100000.0, "tie_word_embeddings": true})"},
    {"openlm-160m", R"({"architectures": ["OpenLMforCausalLM"], "model_type": "openlm", "dim": 512, "n_layers": 35, "n_heads": 12, "head_dim": 32,
                        "hidden_dim": 2048, "vocab_size": 50432, "seq_len": 8192, "norm_eps": 1e-5, "model_norm": "gain_only_layer_norm",
                        "apply_qk_norm": true, "rope_theta": 100000.0, "weight_tying": true})"},
    {"openlm-410m", R"({"architectures": ["OpenLMforCausalLM"], "model_type": "openlm", "dim": 1024, "n_layers": 24, "n_heads": 16, "head_dim": 64,
                        "hidden_dim": 2816, "vocab_size": 50432, "seq_len": 8192, "norm_eps": 1e-5, "model_norm": "gain_only_layer_norm",
                        "apply_qk_norm": true, "rope_theta": 100000.0, "weight_tying": false})"},
    {"openlm-1.4b", R"({"architectures": ["OpenLMforCausalLM"], "model_type": "openlm", "dim": 2048, "n_layers": 24, "n_heads": 16, "head_dim": 128,
                        "hidden_dim": 5632, "vocab_size": 50432, "seq_len": 8192, "norm_eps": 1e-5, "model_norm": "gain_only_layer_norm",
                        "apply_qk_norm": true, "rope_theta": 100000.0, "weight_tying": false})"},
};

absl::StatusOr<ModelConfig> ReadConfig(const std::string& config) {
  for (const Preset& preset : kPresets)
    if (config == preset.name) return ParseHuggingFaceConfig(preset.config, "preset " + config);
  if (!std::filesystem::exists(config)) return NotFound("--config {} is neither a file nor one of {}", config, AnchorPresets());
  ASSIGN_OR_RETURN(const std::string text, ReadFile(config));
  return ParseHuggingFaceConfig(text, config);
}

}  // namespace

std::string AnchorPresets() {
  std::string names;
  for (const Preset& preset : kPresets) names += (names.empty() ? "" : ", ") + std::string(preset.name);
  return names;
}

absl::StatusOr<uint64_t> CountAnchorParameters(const std::string& config) {
  ASSIGN_OR_RETURN(const ModelConfig parsed, ReadConfig(config));
  return CountParameters(parsed);
}

absl::StatusOr<NewAnchor> InitAnchor(const AnchorInitOptions& options) {
  if (options.dtype != DType::kF32 && options.dtype != DType::kBF16) return InvalidArgument("--dtype is {}; allowed: bf16, fp32", DTypeName(options.dtype));
  ASSIGN_OR_RETURN(ModelConfig config, ReadConfig(options.config));
  if (options.vocabulary != 0) config.vocab = options.vocabulary;
  if (options.context != 0) config.context = options.context;
  RETURN_IF_ERROR(CheckConfig(config, options.config));
  ASSIGN_OR_RETURN(const std::unique_ptr<Tokenizer> tokenizer, LoadTokenizer(options.tokenizer));
  if (tokenizer->vocab_size() > config.vocab)
    return FailedPrecondition("the tokenizer in {} has {} tokens; the configuration's vocabulary is {}. Give --vocabulary {} or more", options.tokenizer,
                              tokenizer->vocab_size(), config.vocab, tokenizer->vocab_size());
  std::error_code error;
  if (std::filesystem::exists(options.output, error) && !std::filesystem::is_empty(options.output, error))
    return AlreadyExists("{} is not empty; give another --output", options.output);
  const torch::Dtype dtype = options.dtype == DType::kF32 ? torch::kFloat : torch::kBFloat16;
  ASSIGN_OR_RETURN(const AnchorWeights weights, ReadAnchor(RandomSource(config, options.seed), dtype, torch::kCPU));
  RETURN_IF_ERROR(SaveAnchor(weights, options.output));
  RETURN_IF_ERROR(CopyTokenizerFiles(options.tokenizer, options.output));
  NewAnchor anchor;
  ASSIGN_OR_RETURN(anchor.config, ReadFile(options.output + "/config.json"));
  ASSIGN_OR_RETURN(const AnchorWeights saved, LoadAnchor(options.output, dtype));
  anchor.fingerprint = saved.fingerprint;
  for (const auto& [name, tensor] : saved.Named()) anchor.parameters += tensor.numel();
  return anchor;
}

absl::Status CopyTokenizerFiles(const std::string& from, const std::string& to) {
  for (const char* name : {"tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt",
                           "chat_template.jinja", "generation_config.json"}) {
    const std::string source = from + "/" + name;
    if (!std::filesystem::exists(source)) continue;
    ASSIGN_OR_RETURN(const std::string contents, ReadFile(source));
    RETURN_IF_ERROR(WriteFileAtomic(to + "/" + name, contents));
  }
  return absl::OkStatus();
}

}  // namespace membank
