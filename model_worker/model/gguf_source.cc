// A GGUF file. What llama.cpp's converter (convert_hf_to_gguf.py) changed on the way in is undone here: q and k of llama files are permuted for
// adjacent-pair RoPE, norms of gemma3 files have their 1 added, query_key_value of gptneox files lies as all q, all k, all v.
#include <cmath>
#include <map>

#include "common/base/status_macros.h"
#include "common/tensors/gguf.h"
#include "model_worker/model/anchor_source.h"
#include "model_worker/model/architecture.h"
#include "xxhash.h"

namespace membank {
namespace {

// Hugging Face's stem of a layer's tensor -> llama.cpp's.
const std::map<std::string, std::string>& LayerStems(const std::string& architecture) {
  static const std::map<std::string, std::string> llama = {
      {"input_layernorm", "attn_norm"},   {"self_attn.q_proj", "attn_q"},         {"self_attn.k_proj", "attn_k"},
      {"self_attn.v_proj", "attn_v"},     {"self_attn.o_proj", "attn_output"},    {"self_attn.q_norm", "attn_q_norm"},
      {"self_attn.k_norm", "attn_k_norm"}, {"post_attention_layernorm", "ffn_norm"}, {"mlp.gate_proj", "ffn_gate"},
      {"mlp.up_proj", "ffn_up"},          {"mlp.down_proj", "ffn_down"}};
  static const std::map<std::string, std::string> gemma = [] {
    std::map<std::string, std::string> stems = llama;
    stems["post_attention_layernorm"] = "post_attention_norm";
    stems["pre_feedforward_layernorm"] = "ffn_norm";
    stems["post_feedforward_layernorm"] = "post_ffw_norm";
    return stems;
  }();
  static const std::map<std::string, std::string> neox = {{"input_layernorm", "attn_norm"},          {"attention.query_key_value", "attn_qkv"},
                                                          {"attention.dense", "attn_output"},        {"post_attention_layernorm", "ffn_norm"},
                                                          {"mlp.dense_h_to_4h", "ffn_up"},           {"mlp.dense_4h_to_h", "ffn_down"}};
  return architecture == "gpt_neox" ? neox : architecture == "gemma3_text" ? gemma : llama;
}

// "model.layers.3.self_attn.q_proj.weight" -> "blk.3.attn_q.weight"
std::string GgufName(const ModelConfig& config, const std::string& name) {
  const OuterNames outer = OuterNamesOf(config);
  if (name == outer.embedding) return "token_embd.weight";
  if (name == outer.final_norm) return "output_norm.weight";
  if (name == outer.final_norm_bias) return "output_norm.bias";
  if (name == outer.head) return "output.weight";
  const size_t number = name.find(".layers."), index = number + 8;
  if (number == std::string::npos) return name;
  const size_t dot = name.find('.', index), kind = name.rfind('.');
  if (dot == std::string::npos || kind <= dot) return name;
  const auto& stems = LayerStems(config.architecture);
  const auto stem = stems.find(name.substr(dot + 1, kind - dot - 1));
  return stem == stems.end() ? name : "blk." + name.substr(index, dot - index) + "." + stem->second + name.substr(kind);
}

torch::Tensor Unpermute(const torch::Tensor& w, int64_t heads) {
  const int64_t rows = w.size(0), half = rows / heads / 2;
  return w.view({heads, half, 2, -1}).transpose(1, 2).reshape(w.sizes());
}

class GgufSource : public AnchorSource {
 public:
  GgufSource(std::unique_ptr<GgufFile> file, std::string path) : file_(std::move(file)), path_(std::move(path)) {}

  absl::Status ReadConfig() {
    ASSIGN_OR_RETURN(prefix_, file_->GetString("general.architecture"));
    static const std::map<std::string, std::string> types = {
        {"llama", "llama"}, {"qwen2", "qwen2"}, {"qwen3", "qwen3"}, {"gemma3", "gemma3_text"}, {"gptneox", "gpt_neox"}};
    const auto type = types.find(prefix_);
    if (type == types.end()) return UnsupportedArchitecture(prefix_, path_);
    ModelConfig& c = config_;
    c.architecture = type->second;
    ASSIGN_OR_RETURN(const int64_t experts, IntegerOr("expert_count", 0));
    if (experts > 0) return Unimplemented("{}: {} experts are not supported; supported: dense models", path_, experts);
    ASSIGN_OR_RETURN(c.layers, file_->GetInt(Key("block_count")));
    ASSIGN_OR_RETURN(c.hidden, file_->GetInt(Key("embedding_length")));
    ASSIGN_OR_RETURN(c.heads, file_->GetInt(Key("attention.head_count")));
    ASSIGN_OR_RETURN(c.ffn_inner, file_->GetInt(Key("feed_forward_length")));
    ASSIGN_OR_RETURN(c.context, file_->GetInt(Key("context_length")));
    ASSIGN_OR_RETURN(c.kv_heads, IntegerOr("attention.head_count_kv", c.heads));
    ASSIGN_OR_RETURN(c.head_dim, IntegerOr("attention.key_length", c.heads > 0 ? c.hidden / c.heads : 0));
    ASSIGN_OR_RETURN(c.rotary_dim, IntegerOr("rope.dimension_count", c.head_dim));
    if (c.architecture != "gpt_neox" && c.rotary_dim != c.head_dim)
      return Unimplemented("{}: RoPE over {} of {} dimensions is not supported; supported: all", path_, c.rotary_dim, c.head_dim);
    ASSIGN_OR_RETURN(c.norm.epsilon, file_->GetFloat(Key(c.architecture == "gpt_neox" ? "attention.layer_norm_epsilon" : "attention.layer_norm_rms_epsilon")));
    c.tied_head = !Stored("output.weight");
    const auto embedding = file_->tensors().find("token_embd.weight");
    if (embedding == file_->tensors().end() || embedding->second.shape.size() != 2)
      return NotFound("{}: tensor token_embd.weight [vocabulary, {}] is missing", path_, c.hidden);
    c.vocab = embedding->second.shape[0];
    c.qkv_bias = Stored("blk.0.attn_q.bias") || Stored("blk.0.attn_qkv.bias");
    c.o_bias = Stored("blk.0.attn_output.bias");
    c.ffn_bias = Stored("blk.0.ffn_down.bias");
    if (Stored("blk.0.attn_q_norm.weight")) c.qk_norm = QkNorm::kHead;
    RETURN_IF_ERROR(ReadRope());
    if (c.architecture == "gemma3_text") RETURN_IF_ERROR(ReadGemma());
    if (c.architecture == "gpt_neox") {
      c.norm.center = c.norm_bias = true;
      c.ffn = {Activation::kGelu, false};
      const auto parallel = file_->metadata().find(Key("use_parallel_residual"));
      c.parallel_branches = parallel == file_->metadata().end() || parallel->second == GgufValue(true);
    }
    return CheckConfig(c, path_);
  }

  const ModelConfig& config() const override { return config_; }
  bool Has(const std::string& name) const override { return Stored(GgufName(config_, name)); }

  absl::StatusOr<torch::Tensor> Read(const std::string& name, const std::vector<int64_t>& shape, torch::Dtype dtype) const override {
    const std::string stored = GgufName(config_, name);
    const auto it = file_->tensors().find(stored);
    if (it == file_->tensors().end()) return NotFound("{}: tensor {} {} is missing", path_, stored, ShapeText(shape));
    if (it->second.shape != shape) {
      return InvalidArgument("{}: tensor {} has shape {}, the configuration asks for {}", path_, stored, ShapeText(it->second.shape),
                             ShapeText(shape));
    }
    ASSIGN_OR_RETURN(std::vector<float> values, file_->Dequantize(stored));
    torch::Tensor tensor = torch::from_blob(values.data(), shape, torch::kFloat);
    const bool q = name.find("q_proj") != std::string::npos, k = name.find("k_proj") != std::string::npos;
    if (config_.architecture == "llama" && (q || k)) tensor = Unpermute(tensor, q ? config_.heads : config_.kv_heads);
    if (config_.architecture == "gemma3_text" && stored.find("norm") != std::string::npos) tensor = tensor - 1;
    if (stored.find("attn_qkv") != std::string::npos) tensor = tensor.view({3, config_.heads, config_.head_dim, -1}).transpose(0, 1).reshape(shape);
    return tensor.to(dtype, /*non_blocking=*/false, /*copy=*/true);
  }

  std::string Fingerprint() const override {
    XXH3_state_t* state = XXH3_createState();
    XXH3_128bits_reset(state);
    const std::string config = CanonicalConfig(config_);
    XXH3_128bits_update(state, config.data(), config.size());
    for (const auto& [name, tensor] : file_->tensors()) {
      const std::string header = fmt::format("\n{} ggml {} {}\n", name, tensor.type, ShapeText(tensor.shape));
      XXH3_128bits_update(state, header.data(), header.size());
      XXH3_128bits_update(state, tensor.bytes.data(), tensor.bytes.size());
    }
    const XXH128_hash_t hash = XXH3_128bits_digest(state);
    XXH3_freeState(state);
    return fmt::format("{:016x}{:016x}", hash.high64, hash.low64);
  }

 private:
  std::string Key(const std::string& name) const { return prefix_ + "." + name; }
  bool Stored(const std::string& tensor) const { return file_->tensors().count(tensor) > 0; }
  absl::StatusOr<int64_t> IntegerOr(const std::string& name, int64_t otherwise) const {
    if (file_->metadata().count(Key(name)) == 0) return otherwise;
    return file_->GetInt(Key(name));
  }
  absl::StatusOr<double> NumberOr(const std::string& name, double otherwise) const {
    if (file_->metadata().count(Key(name)) == 0) return otherwise;
    return file_->GetFloat(Key(name));
  }

  absl::Status ReadRope() {
    RopeForm& rope = config_.rope;
    ASSIGN_OR_RETURN(rope.theta, NumberOr("rope.freq_base", config_.architecture == "gemma3_text" ? 1e6 : 1e4));
    if (file_->metadata().count(Key("rope.scaling.type")) > 0) {
      ASSIGN_OR_RETURN(const std::string scaling, file_->GetString(Key("rope.scaling.type")));
      if (scaling != "none" && scaling != "linear") return Unimplemented("{}: RoPE scaling \"{}\" is not supported; supported: \"none\", \"linear\"", path_, scaling);
      if (scaling == "linear") {
        rope.scaling = "linear";
        ASSIGN_OR_RETURN(rope.factor, file_->GetFloat(Key("rope.scaling.factor")));
      }
    }
    if (!Stored("rope_freqs.weight")) return absl::OkStatus();
    // Llama 3.1 and 3.2 store what the frequencies are divided by, not the parameters it came from.
    ASSIGN_OR_RETURN(std::vector<float> divisors, file_->Dequantize("rope_freqs.weight"));
    for (const double factor : {8.0, 32.0}) {
      const RopeForm llama3{rope.theta, "llama3", factor, 1, 4, 8192};
      if (static_cast<int64_t>(divisors.size()) * 2 != config_.rotary_dim || config_.rotary_dim <= 0) break;
      const torch::Tensor expected = rope.InverseFrequencies(config_.rotary_dim) / llama3.InverseFrequencies(config_.rotary_dim);
      const torch::Tensor found = torch::from_blob(divisors.data(), {static_cast<int64_t>(divisors.size())}, torch::kFloat);
      if (!torch::allclose(found, expected, 1e-4)) continue;
      rope = llama3;
      return absl::OkStatus();
    }
    return Unimplemented("{}: rope_freqs.weight is not that of Llama 3.1 (factor 8) or 3.2 (factor 32), the supported RoPE scalings by factors", path_);
  }

  absl::Status ReadGemma() {
    ModelConfig& c = config_;
    c.norm.offset = 1;
    c.ffn.activation = Activation::kGeluTanh;
    c.embedding_scale = std::sqrt(static_cast<double>(c.hidden));
    c.branch_norms = true;
    // The 27B model scales by its hidden size per head instead of the head's (llama.cpp src/llama-model.cpp).
    c.attention_scale = 1 / std::sqrt(static_cast<double>(c.layers == 62 ? c.hidden / c.heads : c.head_dim));
    ASSIGN_OR_RETURN(c.window, file_->GetInt(Key("attention.sliding_window")));
    ASSIGN_OR_RETURN(c.local_rope.theta, NumberOr("rope.freq_base_swa", 1e4));
    for (int64_t i = 0; i < std::min<int64_t>(c.layers, 4096); ++i) c.sliding.push_back((i + 1) % 6 != 0);
    return absl::OkStatus();
  }

  std::unique_ptr<GgufFile> file_;
  std::string path_, prefix_;
  ModelConfig config_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<AnchorSource>> OpenGguf(const std::string& path) {
  ASSIGN_OR_RETURN(std::unique_ptr<GgufFile> file, GgufFile::Open(path));
  auto source = std::make_unique<GgufSource>(std::move(file), path);
  RETURN_IF_ERROR(source->ReadConfig());
  return source;
}

}  // namespace membank
