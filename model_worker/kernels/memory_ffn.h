// The FFN memory of one layer for one level: rows are grouped by distinct block, and each group adds
//   W3t^T (act(x W1^T) * (x W2^T))      W1, W2, W3t [r, d], slices of the block (common/bank/block_layout.h); act is the anchor's
// to the layer's FFN output. Blocks are never copied; W1 and W2 lie side by side, so gate and up are one product. Backward adds the
// gradients straight into the slices of the group's flat gradient (paper section 3; design/wire.md section 3). Outside autograd.
#pragma once

#include <torch/torch.h>

#include <vector>

#include "model_worker/kernels/cpu_kernels.h"
#include "model_worker/kernels/memory_rows.h"

namespace membank {

// A layer's slice of one distinct block, and the rows that use it.
struct MemoryFfnGroup {
  torch::Tensor gate_up, down;                        // [2r, d], [r, d]
  torch::Tensor d_gate_up, d_down;                    // the same slices of the gradient, fp32 or the model's dtype; undefined: none
  const MemoryRowRanges* rows = nullptr;
};

// Views of layer `layer` of a flat block of width r; `gradient` may be undefined.
MemoryFfnGroup MemoryFfnSlice(const torch::Tensor& block, const torch::Tensor& gradient, int64_t layer, int64_t width, int64_t hidden,
                              const MemoryRowRanges& rows);

// out [N, d] += memory(x [N, d]). `saved` (null: no backward follows) receives what backward needs, one per group: gate and up [n, 2r].
void MemoryFfnForward(Activation activation, const torch::Tensor& x, const std::vector<MemoryFfnGroup>& groups, torch::Tensor& out,
                      std::vector<torch::Tensor>* saved);

// Adds to dx [N, d] (undefined: not wanted) and to the groups' gradients.
void MemoryFfnBackward(Activation activation, const torch::Tensor& d_out, const torch::Tensor& x,
                       const std::vector<MemoryFfnGroup>& groups, const std::vector<torch::Tensor>& saved, torch::Tensor dx);

}  // namespace membank
