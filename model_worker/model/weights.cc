#include "model_worker/model/weights.h"

#include <filesystem>

#include "common/base/file.h"
#include "common/base/status_macros.h"
#include "common/tensors/safetensors.h"
#include "fmt/ranges.h"
#include "model_worker/model/anchor_source.h"
#include "model_worker/model/hf_config.h"

namespace membank {
namespace {

// Reads tensors one after the other; the first error stays and the rest is skipped.
class Reader {
 public:
  Reader(const AnchorSource& source, torch::Dtype dtype, torch::Device device) : source_(source), dtype_(dtype), device_(device) {}

  torch::Tensor Read(const std::string& name, std::vector<int64_t> shape) {
    if (!status_.ok()) return {};
    absl::StatusOr<torch::Tensor> tensor = source_.Read(name, shape, dtype_);
    if (!tensor.ok()) {
      status_ = tensor.status();
      return {};
    }
    return tensor->to(device_).contiguous();
  }
  const absl::Status& status() const { return status_; }

 private:
  const AnchorSource& source_;
  const torch::Dtype dtype_;
  const torch::Device device_;
  absl::Status status_;
};

LayerWeights ReadLayer(Reader& reader, const ModelConfig& c, int64_t index) {
  const std::string prefix = fmt::format("model.layers.{}.", index);
  const int64_t q = c.heads * c.head_dim, kv = c.kv_heads * c.head_dim;
  LayerWeights l;
  l.input_norm = reader.Read(prefix + "input_layernorm.weight", {c.hidden});
  l.q = reader.Read(prefix + "self_attn.q_proj.weight", {q, c.hidden});
  l.k = reader.Read(prefix + "self_attn.k_proj.weight", {kv, c.hidden});
  l.v = reader.Read(prefix + "self_attn.v_proj.weight", {kv, c.hidden});
  l.o = reader.Read(prefix + "self_attn.o_proj.weight", {c.hidden, q});
  l.post_attention_norm = reader.Read(prefix + "post_attention_layernorm.weight", {c.hidden});
  l.gate = reader.Read(prefix + "mlp.gate_proj.weight", {c.ffn_inner, c.hidden});
  l.up = reader.Read(prefix + "mlp.up_proj.weight", {c.ffn_inner, c.hidden});
  l.down = reader.Read(prefix + "mlp.down_proj.weight", {c.hidden, c.ffn_inner});
  return l;
}

}  // namespace

absl::Status CheckConfig(const ModelConfig& c, const std::string& where) {
  const std::pair<const char*, int64_t> sizes[] = {{"layers", c.layers},         {"hidden size", c.hidden}, {"heads", c.heads},
                                                   {"key-value heads", c.kv_heads}, {"head size", c.head_dim}, {"FFN size", c.ffn_inner},
                                                   {"vocabulary", c.vocab},      {"context", c.context}};
  for (const auto& [name, value] : sizes) {
    if (value <= 0 || value > (int64_t{1} << 30)) return InvalidArgument("{}: {} is {}; allowed: 1 to 2^30", where, name, value);
  }
  if (c.heads % c.kv_heads != 0) {
    return InvalidArgument("{}: {} heads are no multiple of {} key-value heads", where, c.heads, c.kv_heads);
  }
  if (c.head_dim % 2 != 0) return InvalidArgument("{}: head size {} is odd; RoPE needs an even one", where, c.head_dim);
  if (!(c.rms_epsilon > 0) || !(c.rope_theta > 0)) {
    return InvalidArgument("{}: norm epsilon {} and RoPE base {} must be positive", where, c.rms_epsilon, c.rope_theta);
  }
  return absl::OkStatus();
}

std::string CanonicalConfig(const ModelConfig& c) {
  return fmt::format("{} L {} d {} h {} g {} dh {} df {} V {} context {} eps {:.9g} theta {:.9g} tied {}", c.architecture, c.layers, c.hidden,
                     c.heads, c.kv_heads, c.head_dim, c.ffn_inner, c.vocab, c.context, c.rms_epsilon, c.rope_theta, c.tied_head);
}

absl::Status UnsupportedArchitecture(const std::string& found, const std::string& where) {
  return Unimplemented("{}: architecture \"{}\" is not supported; supported: LlamaForCausalLM (config.json), llama (GGUF)", where, found);
}

std::string ShapeText(const std::vector<int64_t>& shape) { return fmt::format("[{}]", fmt::join(shape, ", ")); }

absl::StatusOr<AnchorWeights> LoadAnchor(const std::string& path, torch::Dtype dtype, torch::Device device) {
  if (dtype != torch::kFloat && dtype != torch::kBFloat16) {
    return InvalidArgument("anchor dtype {} is not supported; supported: float32, bfloat16", torch::toString(dtype));
  }
  std::error_code error;
  const bool directory = std::filesystem::is_directory(path, error);
  if (!directory && !std::filesystem::exists(path, error)) {
    return NotFound("anchor {} does not exist; give a Hugging Face directory or a .gguf file", path);
  }
  ASSIGN_OR_RETURN(const std::unique_ptr<AnchorSource> source, directory ? OpenHuggingFace(path) : OpenGguf(path));
  AnchorWeights weights;
  weights.config = source->config();
  const ModelConfig& c = weights.config;
  Reader reader(*source, dtype, device);
  weights.embedding = reader.Read("model.embed_tokens.weight", {c.vocab, c.hidden});
  for (int64_t i = 0; i < c.layers && reader.status().ok(); ++i) weights.layers.push_back(ReadLayer(reader, c, i));
  weights.final_norm = reader.Read("model.norm.weight", {c.hidden});
  weights.head = c.tied_head ? weights.embedding : reader.Read("lm_head.weight", {c.vocab, c.hidden});
  RETURN_IF_ERROR(reader.status());
  weights.fingerprint = source->Fingerprint();
  weights.origin = source->Origin().empty() ? weights.fingerprint : source->Origin();
  return weights;
}

absl::Status SaveAnchor(const AnchorWeights& weights, const std::string& directory) {
  RETURN_IF_ERROR(MakeDirectories(directory));
  std::vector<torch::Tensor> kept;   // own the bytes that the views name
  std::vector<TensorView> views;
  for (const auto& [name, parameter] : weights.Named()) {
    kept.push_back(parameter.detach().to(torch::kCPU).contiguous());
    const torch::Tensor& tensor = kept.back();
    const bool bf16 = tensor.scalar_type() == torch::kBFloat16;
    if (!bf16 && tensor.scalar_type() != torch::kFloat) {
      return InvalidArgument("tensor {} has type {}; allowed: float32, bfloat16", name, torch::toString(tensor.scalar_type()));
    }
    views.push_back({name, bf16 ? DType::kBF16 : DType::kF32, tensor.sizes().vec(),
                     {static_cast<const uint8_t*>(tensor.data_ptr()), static_cast<size_t>(tensor.nbytes())}});
  }
  const std::filesystem::path base(directory);
  RETURN_IF_ERROR(WriteSafetensors((base / "model.safetensors").string(), views, {{"format", "pt"}, {kOriginKey, weights.origin}}));
  return WriteFileAtomic((base / "config.json").string(), HuggingFaceConfigText(weights.config, weights.embedding.scalar_type()));
}

}  // namespace membank
