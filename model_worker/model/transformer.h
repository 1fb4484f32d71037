// The anchor (Llama architecture) with per-sequence FFN memories. Tensors in, tensors out: no network, no files (weights.h loads).
// Shapes: N rows (tokens of all segments, concatenated), d hidden, V vocabulary, L layers. One thread at a time.
#pragma once

#include <torch/torch.h>

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace membank {

struct ModelConfig {
  std::string architecture;      // "llama"
  int64_t layers = 0, hidden = 0, heads = 0, kv_heads = 0, head_dim = 0, ffn_inner = 0, vocab = 0, context = 0;
  double rms_epsilon = 1e-5, rope_theta = 10000.0;
  bool tied_head = true;
};

struct LayerWeights {            // y = x W^T, as Hugging Face stores them
  torch::Tensor input_norm, post_attention_norm;   // [d]
  torch::Tensor q, k, v, o;                        // [h*dh, d] [hkv*dh, d] [hkv*dh, d] [d, h*dh]
  torch::Tensor gate, up, down;                    // [df, d] [df, d] [d, df]
};

struct AnchorWeights {
  ModelConfig config;
  torch::Tensor embedding;       // [V, d]
  std::vector<LayerWeights> layers;
  torch::Tensor final_norm;      // [d]
  torch::Tensor head;            // [V, d]; the same tensor as `embedding` when tied
  std::string fingerprint;       // hash of config and weights: the bank spec's anchor_fingerprint
  std::string origin;            // of the anchor that this one was co-trained from; its own fingerprint when it was not. A bank belongs to an origin

  // Every distinct parameter with its Hugging Face name, in a fixed order (tied head once).
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

// One distinct block and the rows that use it. `block` is flat [L * 3 * r * d] in the layout of common/bank/block_layout.h, in the model's dtype.
struct MemoryGroup {
  torch::Tensor block;
  torch::Tensor gradient;   // undefined: no gradient; else flat, same size, fp32 or the model's dtype, *added to* by backward
  std::vector<std::pair<int64_t, int64_t>> rows;  // [begin, end), ascending, disjoint
};

// Levels are added one after the other, each grouped by distinct block; nothing is concatenated into copies (design/wire.md section 3).
struct MemoryLevel {
  int64_t width = 0;        // r
  std::vector<MemoryGroup> groups;
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
  // the [N, V] logits of a long batch never exist at once.
  torch::Tensor Loss(const torch::Tensor& hidden, const torch::Tensor& targets, double denominator = 0);

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
