// The decoder layers of the anchor with FFN memories, forward and backward written out: no autograd graph, products over all rows at once,
// q|k|v and gate|up each one matrix. Transformer (transformer.h) is the public face. One thread at a time.
#pragma once

#include <torch/torch.h>

#include <vector>

#include "model_worker/kernels/matmul.h"
#include "model_worker/kernels/ops.h"
#include "model_worker/model/transformer.h"

namespace membank {

// What one layer's backward needs. Undefined members were not needed.
struct LayerTape {
  torch::Tensor x, inv_rms;                     // input [N, d] and its norm's scale [N]
  torch::Tensor normed;                         // [N, d]; only when the anchor is trained
  torch::Tensor qkv;                            // after RoPE
  std::vector<torch::Tensor> log_sums;
  torch::Tensor attention;                      // [N, h*dh], before the o projection
  torch::Tensor x_ffn, inv_rms_ffn, normed_ffn; // the FFN's input, its norm's scale, its norm's output
  torch::Tensor gate_up;                        // [N, 2*df]
  std::vector<std::vector<torch::Tensor>> memory;   // [level][group]
};

struct Tape {
  RaggedBatch batch;
  torch::Tensor positions;                      // [N]
  RopeTable rope;
  std::vector<LayerTape> layers;
  torch::Tensor x, inv_rms;                     // input of the final norm
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
  struct Layer {
    torch::Tensor input_norm, ffn_norm;
    Projection qkv, o, gate_up, down;
  };
  torch::Tensor Attend(const Layer& layer, int64_t index, const RaggedBatch& batch, const torch::Tensor& normed,
                       const torch::Tensor& positions, LayerTape* tape);
  torch::Tensor FeedForward(const Layer& layer, int64_t index, const RaggedBatch& batch, const torch::Tensor& normed, LayerTape* tape);
  void EnsureRope(int64_t positions);

  const AnchorWeights& weights_;
  const bool train_anchor_;
  const Heads shape_;
  std::vector<Layer> layers_;
  RopeTable rope_;
};

}  // namespace membank
