// A GGUF file of the llama architecture. Its q and k rows are permuted for adjacent-pair RoPE (llama.cpp convert_hf_to_gguf.py,
// LlamaModel.permute); they are turned back to Hugging Face's rotate-half order here.
#include <map>

#include "common/base/status_macros.h"
#include "common/tensors/gguf.h"
#include "model_worker/model/anchor_source.h"
#include "xxhash.h"

namespace membank {
namespace {

// "model.layers.3.self_attn.q_proj.weight" -> "blk.3.attn_q.weight"
std::string GgufName(const std::string& name) {
  static const std::map<std::string, std::string> whole = {{"model.embed_tokens.weight", "token_embd.weight"},
                                                           {"model.norm.weight", "output_norm.weight"},
                                                           {"lm_head.weight", "output.weight"}};
  static const std::map<std::string, std::string> in_layer = {
      {"input_layernorm.weight", "attn_norm.weight"}, {"self_attn.q_proj.weight", "attn_q.weight"},
      {"self_attn.k_proj.weight", "attn_k.weight"},   {"self_attn.v_proj.weight", "attn_v.weight"},
      {"self_attn.o_proj.weight", "attn_output.weight"}, {"post_attention_layernorm.weight", "ffn_norm.weight"},
      {"mlp.gate_proj.weight", "ffn_gate.weight"},    {"mlp.up_proj.weight", "ffn_up.weight"},
      {"mlp.down_proj.weight", "ffn_down.weight"}};
  const auto it = whole.find(name);
  if (it != whole.end()) return it->second;
  const std::string prefix = "model.layers.";
  if (name.compare(0, prefix.size(), prefix) != 0) return name;
  const size_t dot = name.find('.', prefix.size());
  const auto part = in_layer.find(name.substr(dot + 1));
  return part == in_layer.end() ? name : "blk." + name.substr(prefix.size(), dot - prefix.size()) + "." + part->second;
}

torch::Tensor Unpermute(const torch::Tensor& w, int64_t heads) {
  const int64_t rows = w.size(0), half = rows / heads / 2;
  return w.view({heads, half, 2, w.size(1)}).transpose(1, 2).reshape({rows, w.size(1)});
}

class GgufSource : public AnchorSource {
 public:
  GgufSource(std::unique_ptr<GgufFile> file, std::string path) : file_(std::move(file)), path_(std::move(path)) {}

  absl::Status ReadConfig() {
    ASSIGN_OR_RETURN(const std::string architecture, file_->GetString("general.architecture"));
    if (architecture != "llama") return UnsupportedArchitecture(architecture, path_);
    const auto& metadata = file_->metadata();
    if (metadata.count("llama.expert_count") > 0) {
      ASSIGN_OR_RETURN(const int64_t experts, file_->GetInt("llama.expert_count"));
      if (experts > 0) return Unimplemented("{}: {} experts are not supported; supported: dense Llama models", path_, experts);
    }
    if (metadata.count("llama.rope.scaling.type") > 0) {
      ASSIGN_OR_RETURN(const std::string scaling, file_->GetString("llama.rope.scaling.type"));
      if (scaling != "none") return Unimplemented("{}: RoPE scaling \"{}\" is not supported; supported: \"none\"", path_, scaling);
    }
    if (file_->tensors().count("rope_freqs.weight") > 0) {
      return Unimplemented("{}: RoPE scaling by factors (rope_freqs.weight, Llama 3) is not supported; supported: \"none\"", path_);
    }
    config_.architecture = "llama";
    ASSIGN_OR_RETURN(config_.layers, file_->GetInt("llama.block_count"));
    ASSIGN_OR_RETURN(config_.hidden, file_->GetInt("llama.embedding_length"));
    ASSIGN_OR_RETURN(config_.heads, file_->GetInt("llama.attention.head_count"));
    ASSIGN_OR_RETURN(config_.ffn_inner, file_->GetInt("llama.feed_forward_length"));
    ASSIGN_OR_RETURN(config_.context, file_->GetInt("llama.context_length"));
    ASSIGN_OR_RETURN(config_.rms_epsilon, file_->GetFloat("llama.attention.layer_norm_rms_epsilon"));
    config_.kv_heads = config_.heads;
    if (metadata.count("llama.attention.head_count_kv") > 0) {
      ASSIGN_OR_RETURN(config_.kv_heads, file_->GetInt("llama.attention.head_count_kv"));
    }
    config_.head_dim = config_.heads > 0 ? config_.hidden / config_.heads : 0;
    if (metadata.count("llama.attention.key_length") > 0) {
      ASSIGN_OR_RETURN(config_.head_dim, file_->GetInt("llama.attention.key_length"));
    }
    if (metadata.count("llama.rope.freq_base") > 0) {
      ASSIGN_OR_RETURN(config_.rope_theta, file_->GetFloat("llama.rope.freq_base"));
    }
    if (metadata.count("llama.rope.dimension_count") > 0) {
      ASSIGN_OR_RETURN(const int64_t turned, file_->GetInt("llama.rope.dimension_count"));
      if (turned != config_.head_dim) {
        return Unimplemented("{}: RoPE over {} of {} dimensions is not supported; supported: all", path_, turned, config_.head_dim);
      }
    }
    config_.tied_head = file_->tensors().count("output.weight") == 0;
    const auto embedding = file_->tensors().find("token_embd.weight");
    if (embedding == file_->tensors().end() || embedding->second.shape.size() != 2) {
      return NotFound("{}: tensor token_embd.weight [vocabulary, {}] is missing", path_, config_.hidden);
    }
    config_.vocab = embedding->second.shape[0];
    return CheckConfig(config_, path_);
  }

  const ModelConfig& config() const override { return config_; }
  bool Has(const std::string& name) const override { return file_->tensors().count(GgufName(name)) > 0; }

  absl::StatusOr<torch::Tensor> Read(const std::string& name, const std::vector<int64_t>& shape, torch::Dtype dtype) const override {
    const std::string stored = GgufName(name);
    const auto it = file_->tensors().find(stored);
    if (it == file_->tensors().end()) return NotFound("{}: tensor {} {} is missing", path_, stored, ShapeText(shape));
    if (it->second.shape != shape) {
      return InvalidArgument("{}: tensor {} has shape {}, the configuration asks for {}", path_, stored, ShapeText(it->second.shape),
                             ShapeText(shape));
    }
    ASSIGN_OR_RETURN(std::vector<float> values, file_->Dequantize(stored));
    torch::Tensor tensor = torch::from_blob(values.data(), shape, torch::kFloat);
    const bool q = name.find("q_proj") != std::string::npos, k = name.find("k_proj") != std::string::npos;
    if (q || k) tensor = Unpermute(tensor, q ? config_.heads : config_.kv_heads);
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
  std::unique_ptr<GgufFile> file_;
  std::string path_;
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
