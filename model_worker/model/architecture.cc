#include "model_worker/model/architecture.h"

#include "common/base/status_macros.h"

namespace membank {
namespace {

using W = LayerWeights;

constexpr ArchitectureName kArchitectures[] = {{"llama", "LlamaForCausalLM"},        {"qwen2", "Qwen2ForCausalLM"},
                                               {"qwen3", "Qwen3ForCausalLM"},        {"gemma3_text", "Gemma3ForCausalLM"},
                                               {"gpt_neox", "GPTNeoXForCausalLM"}, {"openlm", "OpenLMforCausalLM"}};

// Llama's names, which Qwen and Gemma share.
std::vector<LayerTensor> LlamaTensors(const ModelConfig& c) {
  const int64_t d = c.hidden, q = c.heads * c.head_dim, kv = c.kv_heads * c.head_dim, inner = c.ffn_inner;
  std::vector<LayerTensor> tensors{{&W::input_norm, "input_layernorm.weight", {d}},
                                   {&W::q, "self_attn.q_proj.weight", {q, d}},
                                   {&W::k, "self_attn.k_proj.weight", {kv, d}},
                                   {&W::v, "self_attn.v_proj.weight", {kv, d}},
                                   {&W::o, "self_attn.o_proj.weight", {d, q}}};
  if (c.qkv_bias) {
    tensors.insert(tensors.end(), {{&W::q_bias, "self_attn.q_proj.bias", {q}}, {&W::k_bias, "self_attn.k_proj.bias", {kv}}, {&W::v_bias, "self_attn.v_proj.bias", {kv}}});
  }
  if (c.o_bias) tensors.push_back({&W::o_bias, "self_attn.o_proj.bias", {d}});
  if (c.qk_norm == QkNorm::kHead) {
    tensors.insert(tensors.end(), {{&W::q_norm, "self_attn.q_norm.weight", {c.head_dim}}, {&W::k_norm, "self_attn.k_norm.weight", {c.head_dim}}});
  }
  if (c.branch_norms) tensors.push_back({&W::attention_out_norm, "post_attention_layernorm.weight", {d}});
  tensors.insert(tensors.end(), {{&W::ffn_norm, c.branch_norms ? "pre_feedforward_layernorm.weight" : "post_attention_layernorm.weight", {d}},
                                 {&W::gate, "mlp.gate_proj.weight", {inner, d}},
                                 {&W::up, "mlp.up_proj.weight", {inner, d}},
                                 {&W::down, "mlp.down_proj.weight", {d, inner}}});
  if (c.ffn_bias) {
    tensors.insert(tensors.end(), {{&W::gate_bias, "mlp.gate_proj.bias", {inner}}, {&W::up_bias, "mlp.up_proj.bias", {inner}}, {&W::down_bias, "mlp.down_proj.bias", {d}}});
  }
  if (c.branch_norms) tensors.push_back({&W::ffn_out_norm, "post_feedforward_layernorm.weight", {d}});
  return tensors;
}

// query_key_value holds q, k and v of the first head, then of the second, ...
std::vector<LayerTensor> NeoxTensors(const ModelConfig& c) {
  const int64_t d = c.hidden, q = c.heads * c.head_dim, inner = c.ffn_inner, h = c.heads;
  const std::string weight = "attention.query_key_value.weight", bias = "attention.query_key_value.bias";
  std::vector<LayerTensor> tensors{{&W::input_norm, "input_layernorm.weight", {d}},
                                   {&W::input_norm_bias, "input_layernorm.bias", {d}},
                                   {&W::q, weight, {q, d}, 0, 3, h},
                                   {&W::k, weight, {q, d}, 1, 3, h},
                                   {&W::v, weight, {q, d}, 2, 3, h},
                                   {&W::o, "attention.dense.weight", {d, q}}};
  if (c.qkv_bias) tensors.insert(tensors.end(), {{&W::q_bias, bias, {q}, 0, 3, h}, {&W::k_bias, bias, {q}, 1, 3, h}, {&W::v_bias, bias, {q}, 2, 3, h}});
  if (c.o_bias) tensors.push_back({&W::o_bias, "attention.dense.bias", {d}});
  tensors.insert(tensors.end(), {{&W::ffn_norm, "post_attention_layernorm.weight", {d}},
                                 {&W::ffn_norm_bias, "post_attention_layernorm.bias", {d}},
                                 {&W::up, "mlp.dense_h_to_4h.weight", {inner, d}},
                                 {&W::up_bias, "mlp.dense_h_to_4h.bias", {inner}},
                                 {&W::down, "mlp.dense_4h_to_h.weight", {d, inner}},
                                 {&W::down_bias, "mlp.dense_4h_to_h.bias", {d}}});
  return tensors;
}

// in_proj holds q, k and v one after the other, w12 gate and up.
std::vector<LayerTensor> OpenLmTensors(const ModelConfig& c) {
  const int64_t d = c.hidden, q = c.heads * c.head_dim, inner = c.ffn_inner;
  std::vector<LayerTensor> tensors{{&W::input_norm, "attention_norm.weight", {d}},
                                   {&W::q, "attention.in_proj.weight", {q, d}, 0, 3},
                                   {&W::k, "attention.in_proj.weight", {q, d}, 1, 3},
                                   {&W::v, "attention.in_proj.weight", {q, d}, 2, 3},
                                   {&W::o, "attention.out_proj.weight", {d, q}}};
  if (c.qk_norm == QkNorm::kFull) {
    tensors.insert(tensors.end(), {{&W::q_norm, "attention.q_norm.weight", {q}}, {&W::k_norm, "attention.k_norm.weight", {q}}});
  }
  tensors.insert(tensors.end(), {{&W::ffn_norm, "ffn_norm.weight", {d}},
                                 {&W::gate, "feed_forward.w12.weight", {inner, d}, 0, 2},
                                 {&W::up, "feed_forward.w12.weight", {inner, d}, 1, 2},
                                 {&W::down, "feed_forward.w3.weight", {d, inner}}});
  return tensors;
}

}  // namespace

absl::Span<const ArchitectureName> SupportedArchitectures() { return kArchitectures; }

absl::Status UnsupportedArchitecture(const std::string& found, const std::string& where) {
  std::string supported;
  for (const ArchitectureName& name : kArchitectures) supported += fmt::format("{}{}", supported.empty() ? "" : ", ", name.causal_lm);
  return Unimplemented("{}: architecture \"{}\" is not supported; supported: {} (config.json), and llama, qwen2, qwen3, gemma3, gptneox (GGUF)", where,
                       found, supported);
}

std::vector<int64_t> LayerTensor::StoredShape() const {
  std::vector<int64_t> stored_shape = shape;
  stored_shape[0] *= parts;
  return stored_shape;
}

torch::Tensor LayerTensor::Unpack(const torch::Tensor& stored_tensor) const {
  if (parts == 1) return stored_tensor;
  return stored_tensor.reshape({groups, parts, shape[0] / groups, -1}).select(1, part).reshape(shape);
}

torch::Tensor Pack(const std::vector<torch::Tensor>& members, int64_t groups) {
  if (members.size() == 1) return members[0];
  std::vector<torch::Tensor> grouped;
  std::vector<int64_t> shape = members[0].sizes().vec();
  shape[0] *= static_cast<int64_t>(members.size());
  for (const torch::Tensor& member : members) grouped.push_back(member.reshape({groups, member.size(0) / groups, -1}));
  return torch::stack(grouped, 1).reshape(shape);
}

std::vector<LayerTensor> LayerTensors(const ModelConfig& config) {
  if (config.architecture == "gpt_neox") return NeoxTensors(config);
  if (config.architecture == "openlm") return OpenLmTensors(config);
  return LlamaTensors(config);
}

std::string LayerPrefix(const ModelConfig& config, int64_t layer) {
  return fmt::format("{}.layers.{}.", config.architecture == "gpt_neox" ? "gpt_neox" : "model", layer);
}

OuterNames OuterNamesOf(const ModelConfig& config) {
  if (config.architecture == "gpt_neox")
    return {"gpt_neox.embed_in.weight", "gpt_neox.final_layer_norm.weight", "gpt_neox.final_layer_norm.bias", "embed_out.weight"};
  if (config.architecture == "openlm") return {"model.tok_embeddings.weight", "model.norm.weight", "", "model.output.weight"};
  return {"model.embed_tokens.weight", "model.norm.weight", "", "lm_head.weight"};
}

}  // namespace membank
