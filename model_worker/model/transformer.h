// The anchor with per-sequence memories. Tensors in, tensors out: no network, no files (weights.h loads). The architectures are settings of
// one pre-norm decoder: Llama 2/3, Qwen 2/3, Gemma 3, GPT-NeoX and OpenLM (architecture.h says what each calls its tensors).
// Shapes: N rows (tokens of all segments, concatenated), d hidden, V vocabulary, L layers. One thread at a time.
#pragma once

#include <torch/torch.h>

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "common/bank/bank_spec.h"
#include "model_worker/kernels/ops.h"

namespace membank {

// Rotary position embedding of one kind of layer. Scaling as transformers has it: "default" (none), "linear" (positions / factor) or "llama3"
// (slow frequencies / factor, fast ones as they are, a blend between).
struct RopeForm {
  double theta = 10000.0;
  std::string scaling = "default";
  double factor = 1, low_frequency_factor = 1, high_frequency_factor = 4;
  int64_t original_context = 0;

  torch::Tensor InverseFrequencies(int64_t turned) const;   // [turned / 2] fp32
  bool operator==(const RopeForm&) const = default;
};

enum class QkNorm : uint8_t { kNone = 0, kHead = 1, kFull = 2 };   // of q and k before RoPE: none, over each head, over the full width

struct ModelConfig {
  std::string architecture;      // Hugging Face's model_type: llama, qwen2, qwen3, gemma3_text, gpt_neox, openlm
  int64_t layers = 0, hidden = 0, heads = 0, kv_heads = 0, head_dim = 0, ffn_inner = 0, vocab = 0, context = 0;
  NormForm norm{1e-5};
  bool norm_bias = false;
  FfnForm ffn;
  bool ffn_bias = false;
  bool qkv_bias = false, o_bias = false;
  QkNorm qk_norm = QkNorm::kNone;
  RopeForm rope;
  int64_t rotary_dim = 0;        // the first elements of a head that RoPE turns; all but in GPT-NeoX
  // Layers whose attention slides: they see `window` positions and turn by local_rope. Empty: none.
  std::vector<bool> sliding;
  int64_t window = 0;
  RopeForm local_rope;
  double attention_scale = 0;    // 0: 1 / sqrt(dh)
  double embedding_scale = 1;
  bool branch_norms = false;     // a norm after each branch, before its sum with the residual (Gemma 3)
  bool parallel_branches = false;   // attention and FFN read the same residual (GPT-NeoX)
  bool tied_head = true;

  bool Slides(int64_t layer) const { return !sliding.empty() && sliding[layer]; }
  // Of the FFN memory: the anchor's, or SwiGLU where the anchor's FFN has no gate.
  Activation MemoryActivation() const { return ffn.gated ? ffn.activation : Activation::kSilu; }
};

struct LayerWeights {            // y = x W^T + b, as Hugging Face stores them; what an architecture lacks is undefined
  torch::Tensor input_norm, input_norm_bias;       // [d], before attention
  torch::Tensor q, k, v, o;                        // [h*dh, d] [hkv*dh, d] [hkv*dh, d] [d, h*dh]
  torch::Tensor q_bias, k_bias, v_bias, o_bias;
  torch::Tensor q_norm, k_norm;                    // [dh] each, or [h*dh] and [hkv*dh]
  torch::Tensor attention_out_norm;                // [d], after attention
  torch::Tensor ffn_norm, ffn_norm_bias;           // [d], before the FFN
  torch::Tensor gate, up, down;                    // [df, d] [df, d] [d, df]; without a gate, `up` is the only way in
  torch::Tensor gate_bias, up_bias, down_bias;
  torch::Tensor ffn_out_norm;                      // [d], after the FFN
};

struct AnchorWeights {
  ModelConfig config;
  torch::Tensor embedding;       // [V, d]
  std::vector<LayerWeights> layers;
  torch::Tensor final_norm, final_norm_bias;       // [d]
  torch::Tensor head;            // [V, d]; the same tensor as `embedding` when tied
  std::string fingerprint;       // hash of config and weights: the bank spec's anchor_fingerprint
  std::string origin;            // of the anchor that this one was co-trained from; its own fingerprint when it was not. A bank belongs to an origin

  // Every distinct parameter with its Hugging Face name, in a fixed order (tied head once). A part of a stored tensor is "name[part]".
  std::vector<std::pair<std::string, torch::Tensor>> Named() const;
};

// Keys and values of one sequence, all layers; grows as the sequence does.
struct KvCache {
  std::vector<torch::Tensor> keys, values;  // per layer [hkv, capacity, dh]
  int64_t length = 0;                       // tokens held
};

// Contiguous rows [begin, end) of the batch that attend to each other causally: a document in training, a sequence in serving. With a
// cache the rows continue it (row i has position cache->length + i) and Forward appends to it; without, positions start at 0.
struct Segment {
  int64_t begin = 0, end = 0;
  KvCache* cache = nullptr;
};

// One distinct block and the rows that use it. `block` is flat in the layout of common/bank/block_layout.h, in the model's dtype.
struct MemoryGroup {
  torch::Tensor block;
  torch::Tensor gradient;   // undefined: no gradient; else flat, same size, fp32 or the model's dtype, *added to* by backward
  std::vector<std::pair<int64_t, int64_t>> rows;  // [begin, end), ascending, disjoint
};

// Levels are added one after the other, each grouped by distinct block; nothing is concatenated into copies (design/wire.md section 3).
struct MemoryLevel {
  int64_t width = 0;        // r
  std::vector<MemoryGroup> groups;
  MemoryType type = MemoryType::kFfn;
  std::vector<uint32_t> layers;   // of the anchor that have memory, ascending; empty: all
  size_t bank = 0;          // levels of one bank follow one another; those of kv memory share a softmax
};
using MemoryBatch = std::vector<MemoryLevel>;

struct RaggedBatch {
  torch::Tensor tokens;     // [N] int64
  std::vector<Segment> segments;
  MemoryBatch memory;       // rows in no group use the anchor alone
};

class Projection;
class Stack;

class Transformer {
 public:
  // `train_anchor` sets requires_grad on the anchor's parameters; otherwise they are frozen and only memory gradients are computed.
  // The weights' q, k, v and gate, up become slices of one tensor each: update those of a trained anchor in place, do not replace them.
  Transformer(AnchorWeights weights, bool train_anchor);
  ~Transformer();
  Transformer(Transformer&&) noexcept;

  // A malformed batch (segments that leave rows out, a full cache) throws c10::Error.
  // Final hidden states after the last norm [N, d]. Gradients flow when any MemoryGroup::gradient is defined or the anchor is trained.
  torch::Tensor Forward(const RaggedBatch& batch);
  // [n, d] -> [n, V], fp32.
  torch::Tensor Logits(const torch::Tensor& hidden);
  // Mean negative log-likelihood over targets != -100 divided by `denominator` (<= 0: by their number); chunked over rows so that
  // the [N, V] logits of a long batch never exist at once. With `z_loss` c each target adds c * log(sum(exp(logits)))^2: its share of the
  // result is also put where `z_share` points.
  torch::Tensor Loss(const torch::Tensor& hidden, const torch::Tensor& targets, double denominator = 0, double z_loss = 0,
                     double* z_share = nullptr);

  KvCache NewCache(int64_t capacity) const;
  const ModelConfig& config() const { return weights_->config; }
  AnchorWeights& weights() { return *weights_; }
  torch::Dtype dtype() const { return dtype_; }
  torch::Device device() const { return device_; }

 private:
  std::unique_ptr<AnchorWeights> weights_;
  bool train_anchor_;
  torch::Dtype dtype_;
  torch::Device device_;
  std::unique_ptr<Stack> stack_;
  std::unique_ptr<Projection> head_;
};

}  // namespace membank
