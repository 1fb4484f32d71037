// The decoder layers of the anchor with memories, forward and backward written out: no autograd graph, products over all rows at once,
// q|k|v and gate|up each one matrix. What the architectures differ in is ModelConfig's. Transformer (transformer.h) is the public face. One thread at a time.
#pragma once

#include <torch/torch.h>

#include <vector>

#include "model_worker/kernels/matmul.h"
#include "model_worker/kernels/ops.h"
#include "model_worker/model/layer_memory.h"
#include "model_worker/model/transformer.h"

namespace membank {

// What one layer's backward needs. Undefined members were not needed. Of the norms `y` is kept only where a weight's gradient needs it.
struct LayerTape {
  Normed in, ffn;                               // before the branches
  Normed attention_out, ffn_out;                // after them
  Normed q_norm, k_norm;                        // [N * rows of a head, dh] or [N, h*dh]
  torch::Tensor qkv;                            // after RoPE
  std::vector<torch::Tensor> log_sums;
  torch::Tensor attention;                      // [N, h*dh], the anchor's own
  torch::Tensor attended;                       // the same with kv memory: before the o projection
  torch::Tensor gate_up;                        // [N, 2*df], or [N, df] without a gate
  LayerMemoryTape memory;
};

struct Tape {
  RaggedBatch batch;
  torch::Tensor positions;                      // [N]
  RopeTable rope, local_rope;
  std::vector<LayerTape> layers;                // of those from `lowest` up
  int64_t lowest = 0;                           // the lowest layer with anything that wants a gradient
  Normed out;                                   // the final norm, without y
};

class Stack {
 public:
  // Re-points q, k, v and gate, up of `weights` to slices of one tensor each (no copy where they already are). Later in-place updates of
  // the weights are seen when the anchor is trained; replacing a tensor is not.
  Stack(AnchorWeights& weights, bool train_anchor);

  // Hidden states after the final norm. `tape` null: inference.
  torch::Tensor Forward(const RaggedBatch& batch, Tape* tape);
  // Adds memory gradients; the anchor's gradients in the order of Parameters() when it is trained, else empty.
  std::vector<torch::Tensor> Backward(const Tape& tape, const torch::Tensor& d_hidden) const;

  // Embedding, each layer's tensors, final norm: the anchor without an untied head.
  std::vector<torch::Tensor> Parameters() const;

 private:
  struct Linear {   // y = x W^T + b
    Projection w;
    torch::Tensor bias;
    torch::Tensor Forward(const torch::Tensor& x) const;
  };
  struct Layer {
    const LayerWeights* weights;
    Linear qkv, o, in, down;    // in: gate | up, or up
  };

  torch::Tensor Attend(int64_t index, const RaggedBatch& batch, const torch::Tensor& normed, const torch::Tensor& positions, LayerTape* tape);
  torch::Tensor FeedForward(int64_t index, const RaggedBatch& batch, const torch::Tensor& normed, LayerTape* tape);
  void NormHeads(const Layer& layer, torch::Tensor& qkv, LayerTape* tape) const;
  // Gradients to the branches' inputs; `gradients` null: the anchor is frozen. `wanted` false: only those of the memories are.
  torch::Tensor AttendBackward(int64_t index, const Tape& tape, const torch::Tensor& d_out, bool wanted, LayerWeights* gradients) const;
  torch::Tensor FeedForwardBackward(int64_t index, const Tape& tape, const torch::Tensor& d_out, bool wanted, LayerWeights* gradients) const;
  void NormHeadsBackward(const Layer& layer, const LayerTape& tape, torch::Tensor& d_qkv, LayerWeights* gradients) const;
  torch::Tensor BranchNormBackward(const torch::Tensor& dy, const Normed& normed, const torch::Tensor& weight, const torch::Tensor& residual,
                                   torch::Tensor LayerWeights::*member, torch::Tensor LayerWeights::*bias, LayerWeights* gradients) const;
  Heads HeadsOf(int64_t layer) const;
  void EnsureRope(int64_t positions);
  std::vector<torch::Tensor> Flatten(const torch::Tensor& embedding, const std::vector<LayerWeights>& layers, const torch::Tensor& final_norm,
                                     const torch::Tensor& final_norm_bias) const;

  const AnchorWeights& weights_;
  const ModelConfig& config_;
  const bool train_anchor_;
  std::vector<Layer> layers_;
  RopeTable rope_, local_rope_;
};

}  // namespace membank
