// Rows of a batch that use one block: the products of the memory kernels on them, without copying blocks. Outside autograd.
#pragma once

#include <torch/torch.h>

#include <utility>
#include <vector>

namespace membank {

using MemoryRowRanges = std::vector<std::pair<int64_t, int64_t>>;   // [begin, end), ascending, disjoint

// The rows of x [N, any]: a view when they are one range, else a copy.
torch::Tensor GatherRows(const torch::Tensor& x, const MemoryRowRanges& rows);

// out[rows] += a b. One range is accumulated by the product itself.
void AddProductToRows(torch::Tensor& out, const MemoryRowRanges& rows, const torch::Tensor& a, const torch::Tensor& b);

}  // namespace membank
