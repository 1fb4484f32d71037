// KV memory of one layer for all levels of one bank: learned keys and values, one of each for every query head and unit (common/bank/
// block_layout.h), that every row attends to with its query before RoPE and without a causal mask:
//   out[row, head] += softmax over the units of all the row's blocks (scale q . key) value
// The levels share one softmax, as if their units were concatenated: each group's scores are taken with the log of the row's sum over all
// its groups. Another bank has a softmax of its own. Blocks are never copied; backward takes the scores anew and adds the gradients straight
// into the slices of the groups' flat gradients. Outside autograd.
#pragma once

#include <torch/torch.h>

#include <vector>

#include "model_worker/kernels/memory_rows.h"

namespace membank {

// A layer's slice of one distinct block, and the rows that use it.
struct MemoryKvGroup {
  torch::Tensor keys, values;                         // [r, h * dh]
  torch::Tensor d_keys, d_values;                     // the same slices of the gradient, fp32 or the model's dtype; undefined: none
  const MemoryRowRanges* rows = nullptr;
};

// Views of a flat block from element `begin`: keys [r, columns], values [r, columns]. `gradient` may be undefined.
MemoryKvGroup MemoryKvSlice(const torch::Tensor& block, const torch::Tensor& gradient, int64_t begin, int64_t width, int64_t columns,
                            const MemoryRowRanges& rows);

// out [N, h * dh] += memory(q [N, h * dh]); rows of q may be strided. Returns log sums [h, N] fp32 for backward; undefined without groups.
torch::Tensor MemoryKvForward(const torch::Tensor& q, int64_t heads, double scale, const std::vector<MemoryKvGroup>& groups,
                              torch::Tensor& out);

// Adds to dq [N, h * dh] (undefined: not wanted; rows may be strided) and to the groups' gradients.
void MemoryKvBackward(const torch::Tensor& d_out, const torch::Tensor& q, int64_t heads, double scale, const std::vector<MemoryKvGroup>& groups,
                      const torch::Tensor& log_sums, torch::Tensor dq);

}  // namespace membank
