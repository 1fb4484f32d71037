#include "model_worker/kernels/memory_rows.h"

#include "model_worker/kernels/matmul.h"

namespace membank {

torch::Tensor GatherRows(const torch::Tensor& x, const MemoryRowRanges& rows) {
  if (rows.size() == 1) return x.narrow(0, rows[0].first, rows[0].second - rows[0].first);
  std::vector<torch::Tensor> parts;
  parts.reserve(rows.size());
  for (const auto& [begin, end] : rows) parts.push_back(x.narrow(0, begin, end - begin));
  return torch::cat(parts, 0);
}

void AddProductToRows(torch::Tensor& out, const MemoryRowRanges& rows, const torch::Tensor& a, const torch::Tensor& b) {
  if (rows.size() == 1) return AddMatMul(out.narrow(0, rows[0].first, rows[0].second - rows[0].first), a, b);
  const torch::Tensor product = MatMul(a, b);
  int64_t at = 0;
  for (const auto& [begin, end] : rows) {
    out.narrow(0, begin, end - begin).add_(product.narrow(0, at, end - begin));
    at += end - begin;
  }
}

}  // namespace membank
