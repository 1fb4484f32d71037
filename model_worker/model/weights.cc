#include "model_worker/model/weights.h"

#include <cmath>
#include <filesystem>

#include "common/base/file.h"
#include "common/base/status_macros.h"
#include "common/tensors/safetensors.h"
#include "fmt/ranges.h"
#include "model_worker/model/anchor_source.h"
#include "model_worker/model/architecture.h"
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
  LayerWeights l;
  torch::Tensor stored;
  for (const LayerTensor& tensor : LayerTensors(c)) {
    if (tensor.part == 0) stored = reader.Read(LayerPrefix(c, index) + tensor.stored, tensor.StoredShape());
    if (!reader.status().ok()) break;
    l.*tensor.member = tensor.Unpack(stored).contiguous();
  }
  return l;
}

// The tensors as they are stored: parts packed together.
std::vector<std::pair<std::string, torch::Tensor>> StoredTensors(const AnchorWeights& weights) {
  const OuterNames names = OuterNamesOf(weights.config);
  std::vector<std::pair<std::string, torch::Tensor>> stored{{names.embedding, weights.embedding}};
  const std::vector<LayerTensor> tensors = LayerTensors(weights.config);
  for (size_t i = 0; i < weights.layers.size(); ++i) {
    std::vector<torch::Tensor> parts;
    for (const LayerTensor& tensor : tensors) {
      parts.push_back((weights.layers[i].*tensor.member).detach());
      if (tensor.part + 1 < tensor.parts) continue;
      stored.emplace_back(LayerPrefix(weights.config, static_cast<int64_t>(i)) + tensor.stored, Pack(parts, tensor.groups));
      parts.clear();
    }
  }
  stored.emplace_back(names.final_norm, weights.final_norm);
  if (weights.config.norm_bias) stored.emplace_back(names.final_norm_bias, weights.final_norm_bias);
  if (!weights.config.tied_head) stored.emplace_back(names.head, weights.head);
  return stored;
}

std::string RopeText(const RopeForm& r) {
  return fmt::format("{:.9g} {} {:.9g} {:.9g} {:.9g} {}", r.theta, r.scaling, r.factor, r.low_frequency_factor, r.high_frequency_factor, r.original_context);
}

// What differs from Llama, or nothing.
std::string CanonicalExtras(const ModelConfig& c) {
  std::string text;
  if (c.norm.offset != 0 || c.norm.center || c.norm_bias) text += fmt::format(" norm {:.9g} {} {}", c.norm.offset, c.norm.center, c.norm_bias);
  if (c.ffn.activation != Activation::kSilu || !c.ffn.gated || c.ffn_bias)
    text += fmt::format(" ffn {} {} {}", static_cast<int>(c.ffn.activation), c.ffn.gated, c.ffn_bias);
  if (c.qkv_bias || c.o_bias) text += fmt::format(" bias {} {}", c.qkv_bias, c.o_bias);
  if (c.qk_norm != QkNorm::kNone) text += fmt::format(" qk {}", static_cast<int>(c.qk_norm));
  if (c.rotary_dim != c.head_dim) text += fmt::format(" rotary {}", c.rotary_dim);
  if (c.rope.scaling != "default") text += " rope " + RopeText(c.rope);
  if (!c.sliding.empty()) text += fmt::format(" window {} {} {}", c.window, RopeText(c.local_rope), fmt::join(c.sliding, ""));
  if (c.attention_scale != 0) text += fmt::format(" scale {:.9g}", c.attention_scale);
  if (c.embedding_scale != 1) text += fmt::format(" embedding {:.9g}", c.embedding_scale);
  if (c.branch_norms || c.parallel_branches) text += fmt::format(" branches {} {}", c.branch_norms, c.parallel_branches);
  return text;
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
  if (c.rotary_dim <= 0 || c.rotary_dim > c.head_dim || c.rotary_dim % 2 != 0) {
    return InvalidArgument("{}: RoPE turns {} of the {} elements of a head; allowed: an even number of them", where, c.rotary_dim, c.head_dim);
  }
  if (!(c.norm.epsilon > 0) || !(c.rope.theta > 0) || !(c.local_rope.theta > 0)) {
    return InvalidArgument("{}: norm epsilon {} and RoPE bases {} and {} must be positive", where, c.norm.epsilon, c.rope.theta, c.local_rope.theta);
  }
  for (const RopeForm& rope : {c.rope, c.local_rope}) {
    if (!(rope.factor > 0) || !std::isfinite(rope.factor) || (rope.scaling == "llama3" && (rope.original_context <= 0 || !(rope.high_frequency_factor > rope.low_frequency_factor)))) {
      return InvalidArgument("{}: RoPE scaling \"{}\" with factor {}, frequency factors {} and {}, original context {}: the factor and the context must be "
                             "positive, the second frequency factor above the first", where, rope.scaling, rope.factor, rope.low_frequency_factor,
                             rope.high_frequency_factor, rope.original_context);
    }
  }
  if (!c.sliding.empty() && (c.window <= 0 || static_cast<int64_t>(c.sliding.size()) != c.layers)) {
    return InvalidArgument("{}: a sliding window of {} over {} of {} layers; allowed: a positive window", where, c.window, c.sliding.size(), c.layers);
  }
  if (!std::isfinite(c.attention_scale) || c.attention_scale < 0) {
    return InvalidArgument("{}: attention scale {}; allowed: a positive number", where, c.attention_scale);
  }
  return absl::OkStatus();
}

std::string CanonicalConfig(const ModelConfig& c) {
  return fmt::format("{} L {} d {} h {} g {} dh {} df {} V {} context {} eps {:.9g} theta {:.9g} tied {}{}", c.architecture, c.layers, c.hidden, c.heads,
                     c.kv_heads, c.head_dim, c.ffn_inner, c.vocab, c.context, c.norm.epsilon, c.rope.theta, c.tied_head, CanonicalExtras(c));
}

std::string ShapeText(const std::vector<int64_t>& shape) { return fmt::format("[{}]", fmt::join(shape, ", ")); }

absl::StatusOr<AnchorWeights> ReadAnchor(const AnchorSource& source, torch::Dtype dtype, torch::Device device) {
  AnchorWeights weights;
  weights.config = source.config();
  const ModelConfig& c = weights.config;
  Reader reader(source, dtype, device);
  const OuterNames names = OuterNamesOf(c);
  weights.embedding = reader.Read(names.embedding, {c.vocab, c.hidden});
  for (int64_t i = 0; i < c.layers && reader.status().ok(); ++i) weights.layers.push_back(ReadLayer(reader, c, i));
  weights.final_norm = reader.Read(names.final_norm, {c.hidden});
  if (c.norm_bias) weights.final_norm_bias = reader.Read(names.final_norm_bias, {c.hidden});
  weights.head = c.tied_head ? weights.embedding : reader.Read(names.head, {c.vocab, c.hidden});
  RETURN_IF_ERROR(reader.status());
  return weights;
}

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
  ASSIGN_OR_RETURN(AnchorWeights weights, ReadAnchor(*source, dtype, device));
  weights.fingerprint = source->Fingerprint();
  weights.origin = source->Origin().empty() ? weights.fingerprint : source->Origin();
  return weights;
}

absl::Status SaveAnchor(const AnchorWeights& weights, const std::string& directory) {
  RETURN_IF_ERROR(MakeDirectories(directory));
  std::vector<torch::Tensor> kept;   // own the bytes that the views name
  std::vector<TensorView> views;
  for (const auto& [name, parameter] : StoredTensors(weights)) {
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
