#include "model_worker/model/hf_config.h"

#include "common/base/json.h"
#include "common/base/status_macros.h"
#include "model_worker/model/anchor_source.h"
#include "nlohmann/json.hpp"

namespace membank {
namespace {

using Json = nlohmann::json;

absl::StatusOr<int64_t> Integer(const Json& json, const char* name, const std::string& where) {
  const auto it = json.find(name);
  if (it == json.end() || !it->is_number_integer()) return InvalidArgument("{}: \"{}\" must be an integer and is {}", where, name,
                                                                           it == json.end() ? "missing" : it->dump());
  return it->get<int64_t>();
}

absl::StatusOr<double> Number(const Json& json, const char* name, double otherwise, const std::string& where) {
  const auto it = json.find(name);
  if (it == json.end() || it->is_null()) return otherwise;
  if (!it->is_number()) return InvalidArgument("{}: \"{}\" must be a number and is {}", where, name, it->dump());
  return it->get<double>();
}

bool True(const Json& json, const char* name) {
  const auto it = json.find(name);
  return it != json.end() && it->is_boolean() && it->get<bool>();
}

// rope_scaling (v4) or rope_parameters (v5) with a type other than "default".
absl::Status CheckRope(const Json& rope, const std::string& where) {
  if (rope.is_null()) return absl::OkStatus();
  if (!rope.is_object()) return InvalidArgument("{}: RoPE parameters must be an object and are {}", where, rope.dump());
  for (const char* key : {"rope_type", "type"}) {
    const auto it = rope.find(key);
    if (it != rope.end() && *it != "default") {
      return Unimplemented("{}: RoPE scaling {} is not supported; supported: \"default\" (no scaling)", where, it->dump());
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<ModelConfig> ParseHuggingFaceConfig(const std::string& text, const std::string& where) {
  ASSIGN_OR_RETURN(const Json json, ParseJsonObject(text, where));
  std::string architecture = "(none)";
  const auto names = json.find("architectures");
  if (names != json.end() && names->is_array() && !names->empty() && (*names)[0].is_string()) {
    architecture = (*names)[0].get<std::string>();
  } else if (json.contains("model_type") && json["model_type"].is_string()) {
    architecture = json["model_type"].get<std::string>();
  }
  if (architecture != "LlamaForCausalLM" && architecture != "llama") return UnsupportedArchitecture(architecture, where);
  if (json.contains("hidden_act") && json["hidden_act"] != "silu") {
    return Unimplemented("{}: hidden_act {} is not supported; supported: \"silu\"", where, json["hidden_act"].dump());
  }
  for (const char* bias : {"attention_bias", "mlp_bias"}) {
    if (True(json, bias)) return Unimplemented("{}: {} true is not supported; supported: models without biases", where, bias);
  }

  ModelConfig config;
  config.architecture = "llama";
  ASSIGN_OR_RETURN(config.layers, Integer(json, "num_hidden_layers", where));
  ASSIGN_OR_RETURN(config.hidden, Integer(json, "hidden_size", where));
  ASSIGN_OR_RETURN(config.heads, Integer(json, "num_attention_heads", where));
  ASSIGN_OR_RETURN(config.ffn_inner, Integer(json, "intermediate_size", where));
  ASSIGN_OR_RETURN(config.vocab, Integer(json, "vocab_size", where));
  config.kv_heads = config.heads;
  if (json.contains("num_key_value_heads") && !json["num_key_value_heads"].is_null()) {
    ASSIGN_OR_RETURN(config.kv_heads, Integer(json, "num_key_value_heads", where));
  }
  config.head_dim = config.heads > 0 ? config.hidden / config.heads : 0;
  if (json.contains("head_dim") && !json["head_dim"].is_null()) {
    ASSIGN_OR_RETURN(config.head_dim, Integer(json, "head_dim", where));
  }
  config.context = 2048;
  if (json.contains("max_position_embeddings")) {
    ASSIGN_OR_RETURN(config.context, Integer(json, "max_position_embeddings", where));
  }
  ASSIGN_OR_RETURN(config.rms_epsilon, Number(json, "rms_norm_eps", 1e-6, where));
  ASSIGN_OR_RETURN(config.rope_theta, Number(json, "rope_theta", 10000.0, where));
  if (json.contains("rope_scaling")) RETURN_IF_ERROR(CheckRope(json["rope_scaling"], where));
  if (json.contains("rope_parameters")) {
    RETURN_IF_ERROR(CheckRope(json["rope_parameters"], where));
    if (json["rope_parameters"].is_object()) {
      ASSIGN_OR_RETURN(config.rope_theta, Number(json["rope_parameters"], "rope_theta", config.rope_theta, where));
    }
  }
  config.tied_head = True(json, "tie_word_embeddings");
  RETURN_IF_ERROR(CheckConfig(config, where));
  return config;
}

std::string HuggingFaceConfigText(const ModelConfig& config, torch::Dtype dtype) {
  nlohmann::ordered_json json;
  json["architectures"] = {"LlamaForCausalLM"};
  json["model_type"] = "llama";
  json["num_hidden_layers"] = config.layers;
  json["hidden_size"] = config.hidden;
  json["num_attention_heads"] = config.heads;
  json["num_key_value_heads"] = config.kv_heads;
  json["head_dim"] = config.head_dim;
  json["intermediate_size"] = config.ffn_inner;
  json["vocab_size"] = config.vocab;
  json["max_position_embeddings"] = config.context;
  json["rms_norm_eps"] = config.rms_epsilon;
  json["rope_theta"] = config.rope_theta;
  json["hidden_act"] = "silu";
  json["tie_word_embeddings"] = config.tied_head;
  json["attention_bias"] = false;
  json["mlp_bias"] = false;
  json["torch_dtype"] = dtype == torch::kBFloat16 ? "bfloat16" : "float32";
  return json.dump(2) + "\n";
}

}  // namespace membank
