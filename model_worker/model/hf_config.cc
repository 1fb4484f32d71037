#include "model_worker/model/hf_config.h"

#include <algorithm>
#include <cmath>

#include "common/base/json.h"
#include "common/base/status_macros.h"
#include "model_worker/model/anchor_source.h"
#include "model_worker/model/architecture.h"
#include "nlohmann/json.hpp"

namespace membank {
namespace {

using Json = nlohmann::json;

// The fields of one object; the first error stays and later answers mean nothing.
class Fields {
 public:
  Fields(const Json& json, std::string where) : json_(json), where_(std::move(where)) {}

  bool Has(const char* name) const { return json_.contains(name) && !json_[name].is_null(); }
  const Json& at(const char* name) const { return json_[name]; }

  int64_t Integer(const char* name) {
    if (Has(name) && json_[name].is_number_integer()) return json_[name].get<int64_t>();
    Fail(InvalidArgument("{}: \"{}\" must be an integer and is {}", where_, name, json_.contains(name) ? json_[name].dump() : "missing"));
    return 0;
  }
  int64_t Integer(const char* name, int64_t otherwise) { return Has(name) ? Integer(name) : otherwise; }
  double Number(const char* name, double otherwise) {
    if (!Has(name)) return otherwise;
    if (json_[name].is_number()) return json_[name].get<double>();
    Fail(InvalidArgument("{}: \"{}\" must be a number and is {}", where_, name, json_[name].dump()));
    return otherwise;
  }
  bool Flag(const char* name, bool otherwise) {
    if (!Has(name)) return otherwise;
    if (json_[name].is_boolean()) return json_[name].get<bool>();
    Fail(InvalidArgument("{}: \"{}\" must be true or false and is {}", where_, name, json_[name].dump()));
    return otherwise;
  }
  std::string Text(const char* name, const std::string& otherwise) {
    if (!Has(name)) return otherwise;
    if (json_[name].is_string()) return json_[name].get<std::string>();
    Fail(InvalidArgument("{}: \"{}\" must be a string and is {}", where_, name, json_[name].dump()));
    return otherwise;
  }
  // A field that may have these values only (or be absent).
  void Only(const char* name, std::initializer_list<Json> allowed) {
    if (!Has(name)) return;
    std::string list;
    for (const Json& value : allowed) {
      if (json_[name] == value) return;
      list += (list.empty() ? "" : ", ") + value.dump();
    }
    Fail(Unimplemented("{}: {} {} is not supported; supported: {}", where_, name, json_[name].dump(), list));
  }
  void Fail(absl::Status status) {
    if (status_.ok()) status_ = std::move(status);
  }
  const std::string& where() const { return where_; }
  const absl::Status& status() const { return status_; }

 private:
  const Json& json_;
  const std::string where_;
  absl::Status status_;
};

// `json`: rope_scaling (v4) or one kind's rope_parameters (v5).
void ReadRope(const Json& json, Fields& fields, RopeForm* rope) {
  if (json.is_null()) return;
  if (!json.is_object()) return fields.Fail(InvalidArgument("{}: RoPE parameters must be an object and are {}", fields.where(), json.dump()));
  Fields of(json, fields.where());
  rope->theta = of.Number("rope_theta", rope->theta);
  rope->scaling = of.Text("rope_type", of.Text("type", rope->scaling));
  if (rope->scaling == "linear" || rope->scaling == "llama3") rope->factor = of.Number("factor", 1);
  if (rope->scaling == "llama3") {
    rope->low_frequency_factor = of.Number("low_freq_factor", 1);
    rope->high_frequency_factor = of.Number("high_freq_factor", 4);
    rope->original_context = of.Integer("original_max_position_embeddings");
  } else if (rope->scaling != "default" && rope->scaling != "linear") {
    of.Fail(Unimplemented("{}: RoPE scaling \"{}\" is not supported; supported: \"default\" (no scaling), \"linear\", \"llama3\"", fields.where(), rope->scaling));
  }
  fields.Fail(of.status());
}

void ReadRopes(Fields& fields, ModelConfig* c) {
  c->rope.theta = fields.Number("rope_theta", c->rope.theta);
  if (fields.Has("rope_scaling")) ReadRope(fields.at("rope_scaling"), fields, &c->rope);
  if (!fields.Has("rope_parameters")) return;
  const Json& parameters = fields.at("rope_parameters");
  if (!parameters.is_object() || !parameters.contains("full_attention")) return ReadRope(parameters, fields, &c->rope);
  ReadRope(parameters["full_attention"], fields, &c->rope);
  if (parameters.contains("sliding_attention")) ReadRope(parameters["sliding_attention"], fields, &c->local_rope);
}

// layer_types, or the older ways to say which layers slide.
void ReadSliding(Fields& fields, ModelConfig* c) {
  if (fields.Has("layer_types")) {
    const Json& types = fields.at("layer_types");
    if (!types.is_array() || types.size() != static_cast<size_t>(c->layers)) {
      return fields.Fail(InvalidArgument("{}: \"layer_types\" must have one entry for each of {} layers and is {}", fields.where(), c->layers, types.dump()));
    }
    for (const Json& type : types) {
      if (type != "full_attention" && type != "sliding_attention") {
        return fields.Fail(Unimplemented("{}: layer type {} is not supported; supported: \"full_attention\", \"sliding_attention\"", fields.where(), type.dump()));
      }
      c->sliding.push_back(type == "sliding_attention");
    }
  } else if (c->architecture == "gemma3_text") {
    const int64_t pattern = std::max<int64_t>(1, fields.Integer("sliding_window_pattern", 6));
    for (int64_t i = 0; i < std::min<int64_t>(c->layers, 4096); ++i) c->sliding.push_back((i + 1) % pattern != 0);
  } else if (fields.Flag("use_sliding_window", false)) {
    const int64_t first = fields.Integer("max_window_layers", c->layers);
    for (int64_t i = 0; i < std::min<int64_t>(c->layers, 4096); ++i) c->sliding.push_back(i >= first);
  }
  if (std::find(c->sliding.begin(), c->sliding.end(), true) == c->sliding.end()) {
    c->sliding.clear();
  } else {
    c->window = fields.Integer("sliding_window");
  }
}

void ReadSizes(Fields& fields, ModelConfig* c) {
  c->layers = fields.Integer("num_hidden_layers");
  c->hidden = fields.Integer("hidden_size");
  c->heads = fields.Integer("num_attention_heads");
  c->ffn_inner = fields.Integer("intermediate_size");
  c->vocab = fields.Integer("vocab_size");
  c->kv_heads = fields.Integer("num_key_value_heads", c->heads);
  c->head_dim = fields.Integer("head_dim", c->heads > 0 ? c->hidden / c->heads : 0);
  c->context = fields.Integer("max_position_embeddings", 2048);
  c->rotary_dim = c->head_dim;
}

void ReadLlama(Fields& fields, ModelConfig* c) {
  fields.Only("hidden_act", {"silu"});
  ReadSizes(fields, c);
  c->norm.epsilon = fields.Number("rms_norm_eps", 1e-6);
  ReadRopes(fields, c);
  c->tied_head = fields.Flag("tie_word_embeddings", false);
  c->qkv_bias = c->o_bias = fields.Flag("attention_bias", false);
  c->ffn_bias = fields.Flag("mlp_bias", false);
}

void ReadQwen(Fields& fields, ModelConfig* c) {
  ReadLlama(fields, c);
  if (c->architecture == "qwen2") {
    c->qkv_bias = true;
    c->o_bias = false;
  } else {
    c->head_dim = c->rotary_dim = fields.Integer("head_dim", 128);
    c->qk_norm = QkNorm::kHead;
  }
  c->ffn_bias = false;
  ReadSliding(fields, c);
  c->local_rope = c->rope;
}

void ReadGemma(Fields& fields, ModelConfig* c) {
  fields.Only("hidden_activation", {"gelu_pytorch_tanh"});
  for (const char* cap : {"final_logit_softcapping", "attn_logit_softcapping"}) fields.Only(cap, {nullptr});
  fields.Only("use_bidirectional_attention", {false});
  ReadSizes(fields, c);
  c->head_dim = c->rotary_dim = fields.Integer("head_dim", 256);
  c->norm = {fields.Number("rms_norm_eps", 1e-6), 1.0};
  c->ffn.activation = Activation::kGeluTanh;
  c->qk_norm = QkNorm::kHead;
  c->rope.theta = 1e6;
  c->local_rope.theta = fields.Number("rope_local_base_freq", 1e4);
  ReadRopes(fields, c);
  ReadSliding(fields, c);
  c->attention_scale = 1.0 / std::sqrt(fields.Number("query_pre_attn_scalar", 256));
  c->embedding_scale = std::sqrt(static_cast<double>(c->hidden));
  c->branch_norms = true;
  c->tied_head = fields.Flag("tie_word_embeddings", true);
  c->qkv_bias = c->o_bias = fields.Flag("attention_bias", false);
}

void ReadNeox(Fields& fields, ModelConfig* c) {
  fields.Only("hidden_act", {"gelu", "gelu_new", "gelu_pytorch_tanh"});
  ReadSizes(fields, c);
  c->norm = {fields.Number("layer_norm_eps", 1e-5), 0.0, true};
  c->norm_bias = c->ffn_bias = true;
  c->ffn = {fields.Text("hidden_act", "gelu") == "gelu" ? Activation::kGelu : Activation::kGeluTanh, false};
  c->qkv_bias = c->o_bias = fields.Flag("attention_bias", true);
  c->rope.theta = fields.Number("rotary_emb_base", 10000);
  double turned = fields.Number("partial_rotary_factor", fields.Number("rotary_pct", 0.25));
  ReadRopes(fields, c);
  if (fields.Has("rope_parameters") && fields.at("rope_parameters").is_object()) {
    Fields rope(fields.at("rope_parameters"), fields.where());
    turned = rope.Number("partial_rotary_factor", turned);
    fields.Fail(rope.status());
  }
  c->rotary_dim = static_cast<int64_t>(static_cast<double>(c->head_dim) * turned);
  c->parallel_branches = fields.Flag("use_parallel_residual", true);
  c->tied_head = fields.Flag("tie_word_embeddings", false);
}

// OpenLM keeps its arguments in the object itself (set_params) or in params_args_dict: `json`.
void ReadOpenLm(const Json& json, Fields& outer, ModelConfig* c) {
  Fields fields(json, outer.where());
  fields.Only("ffn_type", {"swiglu", "swiglu_torch"});
  fields.Only("positional_embedding_type", {"rotary"});
  fields.Only("post_embed_norm", {false});
  fields.Only("model_norm", {"gain_only_layer_norm", "gain_only_lp_layer_norm", "rms_norm"});
  for (const char* experts : {"moe_freq", "num_experts"}) fields.Only(experts, {0});
  c->hidden = fields.Integer("dim");
  c->layers = fields.Integer("n_layers");
  c->heads = c->kv_heads = fields.Integer("n_heads");
  c->vocab = fields.Integer("vocab_size");
  c->context = fields.Integer("seq_len", 2048);
  c->head_dim = c->rotary_dim = fields.Integer("head_dim", c->heads > 0 ? c->hidden / c->heads : 0);
  c->ffn_inner = fields.Integer("hidden_dim", (2 * 4 * c->hidden / 3 + 255) / 256 * 256);
  c->norm = {fields.Number("norm_eps", 1e-5), 0.0, fields.Text("model_norm", "gain_only_layer_norm") != "rms_norm"};
  c->qk_norm = fields.Flag("apply_qk_norm", fields.Flag("qk_norm", false)) ? QkNorm::kFull : QkNorm::kNone;
  c->rope.theta = fields.Number("rope_theta", 10000);
  c->tied_head = fields.Flag("weight_tying", false);
  outer.Fail(fields.status());
}

nlohmann::ordered_json RopeJson(const RopeForm& rope) {
  nlohmann::ordered_json json{{"rope_type", rope.scaling}, {"rope_theta", rope.theta}};
  if (rope.scaling != "default") json["factor"] = rope.factor;
  if (rope.scaling == "llama3") {
    json["low_freq_factor"] = rope.low_frequency_factor;
    json["high_freq_factor"] = rope.high_frequency_factor;
    json["original_max_position_embeddings"] = rope.original_context;
  }
  return json;
}

nlohmann::ordered_json OpenLmJson(const ModelConfig& c) {
  return {{"dim", c.hidden}, {"n_layers", c.layers}, {"n_heads", c.heads}, {"head_dim", c.head_dim}, {"hidden_dim", c.ffn_inner}, {"vocab_size", c.vocab},
          {"seq_len", c.context}, {"norm_eps", c.norm.epsilon}, {"model_norm", c.norm.center ? "gain_only_layer_norm" : "rms_norm"},
          {"apply_qk_norm", c.qk_norm == QkNorm::kFull}, {"rope_theta", c.rope.theta}, {"ffn_type", "swiglu"}, {"positional_embedding_type", "rotary"},
          {"weight_tying", c.tied_head}};
}

nlohmann::ordered_json TransformersJson(const ModelConfig& c) {
  nlohmann::ordered_json json{{"num_hidden_layers", c.layers}, {"hidden_size", c.hidden}, {"num_attention_heads", c.heads}, {"intermediate_size", c.ffn_inner},
                              {"vocab_size", c.vocab}, {"max_position_embeddings", c.context}, {"tie_word_embeddings", c.tied_head}, {"attention_bias", c.o_bias}};
  const char* activation = c.ffn.activation == Activation::kSilu ? "silu" : c.ffn.activation == Activation::kGelu ? "gelu" : "gelu_pytorch_tanh";
  nlohmann::ordered_json rope = RopeJson(c.rope);
  if (c.architecture == "gpt_neox") {
    json["hidden_act"] = activation;
    json["layer_norm_eps"] = c.norm.epsilon;
    json["attention_bias"] = c.qkv_bias;
    json["use_parallel_residual"] = c.parallel_branches;
    double turned = static_cast<double>(c.rotary_dim) / static_cast<double>(c.head_dim);
    if (static_cast<int64_t>(static_cast<double>(c.head_dim) * turned) < c.rotary_dim) turned = std::nextafter(turned, 1.0);   // readers round down
    rope["partial_rotary_factor"] = turned;
    json["rotary_pct"] = rope["partial_rotary_factor"];
    json["rotary_emb_base"] = c.rope.theta;
    json["rope_parameters"] = rope;
    return json;
  }
  json["num_key_value_heads"] = c.kv_heads;
  json["head_dim"] = c.head_dim;
  json["rms_norm_eps"] = c.norm.epsilon;
  if (!c.sliding.empty()) {
    json["sliding_window"] = c.window;
    for (const bool slides : c.sliding) json["layer_types"].push_back(slides ? "sliding_attention" : "full_attention");
  }
  if (c.architecture == "gemma3_text") {
    json["hidden_activation"] = activation;
    json["query_pre_attn_scalar"] = std::llround(1.0 / (c.attention_scale * c.attention_scale));   // transformers takes no fraction
    json["rope_parameters"] = {{"full_attention", rope}, {"sliding_attention", RopeJson(c.local_rope)}};
    return json;
  }
  json["hidden_act"] = activation;
  if (c.architecture == "llama") json["mlp_bias"] = c.ffn_bias;
  if (!c.sliding.empty()) json["use_sliding_window"] = true;
  // Both generations: transformers before 5 reads rope_theta and rope_scaling.
  json["rope_theta"] = c.rope.theta;
  if (c.rope.scaling != "default") {
    json["rope_scaling"] = rope;
    json["rope_scaling"].erase("rope_theta");
  }
  json["rope_parameters"] = rope;
  return json;
}

}  // namespace

absl::StatusOr<ModelConfig> ParseHuggingFaceConfig(const std::string& text, const std::string& where) {
  ASSIGN_OR_RETURN(const Json json, ParseJsonObject(text, where));
  Fields fields(json, where);
  const Json names = json.value("architectures", Json::array());
  const std::string architecture = names.is_array() && !names.empty() && names[0].is_string() ? names[0].get<std::string>()
                                                                                             : fields.Text("model_type", "(none)");
  ModelConfig config;
  for (const ArchitectureName& name : SupportedArchitectures()) {
    if (architecture == name.causal_lm || architecture == name.model_type) config.architecture = name.model_type;
  }
  if (config.architecture.empty()) return UnsupportedArchitecture(architecture, where);
  if (config.architecture == "gemma3_text") {
    ReadGemma(fields, &config);
  } else if (config.architecture == "gpt_neox") {
    ReadNeox(fields, &config);
  } else if (config.architecture == "openlm") {
    ReadOpenLm(json.value("params_args_dict", Json()).is_object() ? json["params_args_dict"] : json, fields, &config);
  } else if (config.architecture == "llama") {
    ReadLlama(fields, &config);
  } else {
    ReadQwen(fields, &config);
  }
  RETURN_IF_ERROR(fields.status());
  RETURN_IF_ERROR(CheckConfig(config, where));
  return config;
}

std::string HuggingFaceConfigText(const ModelConfig& config, torch::Dtype dtype) {
  nlohmann::ordered_json json;
  for (const ArchitectureName& name : SupportedArchitectures()) {
    if (config.architecture == name.model_type) json["architectures"] = {name.causal_lm};
  }
  json["model_type"] = config.architecture;
  json.update(config.architecture == "openlm" ? OpenLmJson(config) : TransformersJson(config));
  json["torch_dtype"] = dtype == torch::kBFloat16 ? "bfloat16" : "float32";
  return json.dump(2) + "\n";
}

}  // namespace membank
