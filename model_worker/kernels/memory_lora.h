// LoRA memory of projections that share an input, for one layer and one level: rows are grouped by distinct block, and each group adds
//   2 (x A_j^T) B_j      A_j [r, in], B_j [r, out_j], slices of the block (common/bank/block_layout.h)
// to the output of projection j. The A of all projections lie side by side, so they are one product. Blocks are never copied; levels and
// banks are added one after the other, which equals the LoRA of their concatenated ranks. Backward adds the gradients straight into the
// slices of the group's flat gradient. Outside autograd.
#pragma once

#include <torch/torch.h>

#include <vector>

#include "model_worker/kernels/memory_rows.h"

namespace membank {

inline constexpr double kLoraScale = 2.0;   // the paper's; not divided by the rank

// A layer's slice of one distinct block, and the rows that use it.
struct MemoryLoraGroup {
  torch::Tensor a;                              // [m * r, in]
  std::vector<torch::Tensor> b;                 // m of [r, out_j]
  torch::Tensor d_a;                            // the same slices of the gradient, fp32 or the model's dtype; undefined: none
  std::vector<torch::Tensor> d_b;
  const MemoryRowRanges* rows = nullptr;
};

// Views of a flat block from element `begin`: A_1 .. A_m [r, in], then B_1 [r, outs[0]] .. B_m. `gradient` may be undefined.
MemoryLoraGroup MemoryLoraSlice(const torch::Tensor& block, const torch::Tensor& gradient, int64_t begin, int64_t width, int64_t in,
                                const std::vector<int64_t>& outs, const MemoryRowRanges& rows);

// outs[j] [N, out_j] += memory(x [N, in]); rows may be strided, so that outs can be columns of one tensor. `saved` (null: no backward
// follows) receives what backward needs, one per group: 2 x A^T [n, m * r].
void MemoryLoraForward(const torch::Tensor& x, const std::vector<MemoryLoraGroup>& groups, std::vector<torch::Tensor> outs,
                       std::vector<torch::Tensor>* saved);

// Adds to dx [N, in] (undefined: not wanted) and to the groups' gradients.
void MemoryLoraBackward(const std::vector<torch::Tensor>& d_outs, const torch::Tensor& x, const std::vector<MemoryLoraGroup>& groups,
                        const std::vector<torch::Tensor>& saved, torch::Tensor dx);

}  // namespace membank
