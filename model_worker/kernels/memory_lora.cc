#include "model_worker/kernels/memory_lora.h"

#include "model_worker/kernels/matmul.h"

namespace membank {

MemoryLoraGroup MemoryLoraSlice(const torch::Tensor& block, const torch::Tensor& gradient, int64_t begin, int64_t width, int64_t in,
                                const std::vector<int64_t>& outs, const MemoryRowRanges& rows) {
  MemoryLoraGroup group;
  const auto slice = [&](const torch::Tensor& flat, torch::Tensor* a, std::vector<torch::Tensor>* b) {
    const int64_t height = static_cast<int64_t>(outs.size()) * width;
    *a = flat.narrow(0, begin, height * in).view({height, in});
    int64_t at = begin + height * in;
    for (const int64_t out : outs) {
      b->push_back(flat.narrow(0, at, width * out).view({width, out}));
      at += width * out;
    }
  };
  slice(block, &group.a, &group.b);
  if (gradient.defined()) slice(gradient, &group.d_a, &group.d_b);
  group.rows = &rows;
  return group;
}

void MemoryLoraForward(const torch::Tensor& x, const std::vector<MemoryLoraGroup>& groups, std::vector<torch::Tensor> outs,
                       std::vector<torch::Tensor>* saved) {
  for (const MemoryLoraGroup& group : groups) {
    if (group.rows->empty()) {
      if (saved != nullptr) saved->emplace_back();
      continue;
    }
    const torch::Tensor t = MatMul(GatherRows(x, *group.rows), group.a.t()).mul_(kLoraScale);   // [n, m * r]
    const int64_t width = group.b[0].size(0);
    for (size_t j = 0; j < outs.size(); ++j) {
      AddProductToRows(outs[j], *group.rows, t.narrow(1, static_cast<int64_t>(j) * width, width), group.b[j]);
    }
    if (saved != nullptr) saved->push_back(t);
  }
}

void MemoryLoraBackward(const std::vector<torch::Tensor>& d_outs, const torch::Tensor& x, const std::vector<MemoryLoraGroup>& groups,
                        const std::vector<torch::Tensor>& saved, torch::Tensor dx) {
  for (size_t i = 0; i < groups.size(); ++i) {
    const MemoryLoraGroup& group = groups[i];
    if (group.rows->empty()) continue;
    const bool wanted = group.d_a.defined();
    const int64_t width = group.b[0].size(0);
    torch::Tensor dt = torch::empty_like(saved[i]);                                      // [n, m * r]
    for (size_t j = 0; j < d_outs.size(); ++j) {
      const int64_t at = static_cast<int64_t>(j) * width;
      const torch::Tensor dy = GatherRows(d_outs[j], *group.rows);                       // [n, out_j]
      MatMulOut(dt.narrow(1, at, width), dy, group.b[j].t());
      if (wanted) AddMatMul(group.d_b[j], saved[i].narrow(1, at, width).t(), dy);
    }
    dt.mul_(kLoraScale);
    if (wanted) AddMatMul(group.d_a, dt.t(), GatherRows(x, *group.rows));
    if (dx.defined()) AddProductToRows(dx, *group.rows, dt, group.a);
  }
}

}  // namespace membank
