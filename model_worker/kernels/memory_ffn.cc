#include "model_worker/kernels/memory_ffn.h"

#include "model_worker/kernels/cpu_tensors.h"
#include "model_worker/kernels/matmul.h"
#include "model_worker/kernels/ops.h"

namespace membank {
namespace {

constexpr int64_t kFewRows = 4;   // per group: up to here the fused kernel, which reads each block once per row

int64_t Count(const MemoryRowRanges& rows) {
  int64_t count = 0;
  for (const auto& [begin, end] : rows) count += end - begin;
  return count;
}

bool FewRows(const torch::Tensor& x, const std::vector<MemoryFfnGroup>& groups) {
  if (!OnCpuKernels(x)) return false;
  for (const MemoryFfnGroup& group : groups) {
    if (Count(*group.rows) > kFewRows) return false;
  }
  return true;
}

void ForwardFewRows(Activation activation, const torch::Tensor& x, const std::vector<MemoryFfnGroup>& groups, torch::Tensor& out) {
  std::vector<MemoryRows> raw;
  for (const MemoryFfnGroup& group : groups) {
    for (const auto& [begin, end] : *group.rows) raw.push_back({group.gate_up.data_ptr(), group.down.data_ptr(), begin, end});
  }
  KernelsFor(x).memory_ffn(activation, groups[0].down.size(0), x.size(1), x.data_ptr(), out.data_ptr(), raw);
}

}  // namespace

MemoryFfnGroup MemoryFfnSlice(const torch::Tensor& block, const torch::Tensor& gradient, int64_t layer, int64_t width, int64_t hidden,
                              const MemoryRowRanges& rows) {
  const int64_t matrix = width * hidden, begin = layer * 3 * matrix;
  const auto slice = [&](const torch::Tensor& flat, int64_t at, int64_t height) {
    return flat.narrow(0, begin + at, height * hidden).view({height, hidden});
  };
  MemoryFfnGroup group;
  group.gate_up = slice(block, 0, 2 * width);
  group.down = slice(block, 2 * matrix, width);
  if (gradient.defined()) {
    group.d_gate_up = slice(gradient, 0, 2 * width);
    group.d_down = slice(gradient, 2 * matrix, width);
  }
  group.rows = &rows;
  return group;
}

void MemoryFfnForward(Activation activation, const torch::Tensor& x, const std::vector<MemoryFfnGroup>& groups, torch::Tensor& out,
                      std::vector<torch::Tensor>* saved) {
  if (groups.empty()) return;
  if (saved == nullptr && FewRows(x, groups)) return ForwardFewRows(activation, x, groups, out);
  for (const MemoryFfnGroup& group : groups) {
    if (group.rows->empty()) {
      if (saved != nullptr) saved->emplace_back();
      continue;
    }
    const torch::Tensor gate_up = MatMul(GatherRows(x, *group.rows), group.gate_up.t());  // [n, 2r]
    AddProductToRows(out, *group.rows, Activate({activation, true}, gate_up), group.down);
    if (saved != nullptr) saved->push_back(gate_up);
  }
}

void MemoryFfnBackward(Activation activation, const torch::Tensor& d_out, const torch::Tensor& x,
                       const std::vector<MemoryFfnGroup>& groups, const std::vector<torch::Tensor>& saved, torch::Tensor dx) {
  for (size_t i = 0; i < groups.size(); ++i) {
    const MemoryFfnGroup& group = groups[i];
    if (group.rows->empty()) continue;
    const torch::Tensor dy = GatherRows(d_out, *group.rows);                                   // [n, d]
    const torch::Tensor dh = MatMul(dy, group.down.t());                                   // [n, r]
    const bool wanted = group.d_down.defined();
    const ActivationGradient gradient = ActivateBackward({activation, true}, saved[i], dh, wanted);
    if (wanted) {
      AddMatMul(group.d_gate_up, gradient.d_in.t(), GatherRows(x, *group.rows));
      AddMatMul(group.d_down, gradient.h.t(), dy);
    }
    if (dx.defined()) AddProductToRows(dx, *group.rows, gradient.d_in, group.gate_up);
  }
}

}  // namespace membank
