// The memory of one layer, of whatever type: where its kernels join the layer's forward and backward pass. Every call is a no-op when the
// layer has no memory of that place, and adds, level by level and bank by bank, to what the anchor computes (mission/paper.md section 3).
// A view of the batch, made anew for each layer and pass; outside autograd.
#pragma once

#include <torch/torch.h>

#include <vector>

#include "model_worker/model/transformer.h"

namespace membank {

// What backward needs. `first` and `second`: per level of the layer and group, of the kernels that a level runs, in their order.
struct LayerMemoryTape {
  std::vector<std::vector<torch::Tensor>> first, second;
  torch::Tensor query;                          // of kv memory [N, h*dh], before RoPE
  std::vector<torch::Tensor> log_sums;          // of kv memory, per bank
};

class LayerMemory {
 public:
  LayerMemory(const MemoryBatch& memory, const ModelConfig& config, int64_t layer);

  // Does it take part in attention, and read that branch's input? Does it take part before the FFN's activation?
  bool InAttention() const { return Has(MemoryType::kKv) || ReadsAttentionInput(); }
  bool ReadsAttentionInput() const { return Has(MemoryType::kLoraQk) || Has(MemoryType::kLoraVo); }
  bool InsideFfn() const { return Has(MemoryType::kLoraFfn); }

  // Forward, in this order; `tape` may be null. x is the branch's normed input, out what the branch gives.
  void AddToQkv(const torch::Tensor& x, torch::Tensor& qkv, LayerMemoryTape* tape) const;
  torch::Tensor Query(const torch::Tensor& qkv) const;                    // a copy before RoPE; undefined without kv memory
  // attention + what the memory gives to `query`; attention itself, the same tensor, without kv memory.
  torch::Tensor AddToAttention(const torch::Tensor& query, const torch::Tensor& attention, LayerMemoryTape* tape) const;
  void AddToAttentionOut(const torch::Tensor& attended, torch::Tensor& out, LayerMemoryTape* tape) const;
  void AddToFfnIn(const torch::Tensor& x, torch::Tensor& in, LayerMemoryTape* tape) const;
  void AddToFfnOut(const torch::Tensor& x, const torch::Tensor& h, torch::Tensor& out, LayerMemoryTape* tape) const;

  // Backward, in this order: add to the groups' gradients and to the last argument. dx may be undefined: not wanted.
  void FfnOutBackward(const torch::Tensor& d_out, const torch::Tensor& in, const LayerMemoryTape& tape, torch::Tensor dh) const;
  void FfnInBackward(const torch::Tensor& d_out, const torch::Tensor& d_in, const torch::Tensor& x, const LayerMemoryTape& tape, torch::Tensor dx) const;
  void AttentionOutBackward(const torch::Tensor& d_out, const torch::Tensor& attended, const LayerMemoryTape& tape, torch::Tensor d_attended) const;
  void AttentionBackward(const torch::Tensor& d_attended, const LayerMemoryTape& tape, torch::Tensor d_qkv) const;   // d_qkv: before RoPE
  void QkvBackward(const torch::Tensor& d_qkv, const torch::Tensor& x, const LayerMemoryTape& tape, torch::Tensor dx) const;

 private:
  struct Level {
    const MemoryLevel* level;
    int64_t place;                              // of the layer among the block's
    int64_t begin;                              // of the layer in a block, in elements
  };

  bool Has(MemoryType type) const;
  // Calls visit(number of the level in this layer, level) for those of `type`.
  template <typename Visit>
  void ForEach(MemoryType type, Visit visit) const;
  // Calls visit(groups of all its levels, its number) for each bank with kv memory.
  template <typename Visit>
  void ForEachKvBank(Visit visit) const;
  double HeadScale() const;
  std::vector<torch::Tensor> Columns(const torch::Tensor& qkv, MemoryType type) const;   // those that LoRA of the type changes

  const ModelConfig& config_;
  const int64_t q_, kv_;                        // widths
  std::vector<Level> levels_;
};

// Throws c10::Error when a block does not have the size that its level, type and layers ask for.
void CheckMemory(const MemoryBatch& memory, const ModelConfig& config);

// The lowest layer whose memory wants a gradient; the number of layers when none does.
int64_t LowestTrainedLayer(const MemoryBatch& memory, int64_t layers);

}  // namespace membank
