// Which tensors the kernels of cpu_kernels.h take.
#pragma once

#include <torch/torch.h>

#include "model_worker/kernels/cpu_kernels.h"

namespace membank {

inline bool OnCpuKernels(const torch::Tensor& x) {
  return x.is_cpu() && (x.scalar_type() == torch::kFloat || x.scalar_type() == torch::kBFloat16);
}

inline const CpuKernels& KernelsFor(const torch::Tensor& x) {
  return Kernels(x.scalar_type() == torch::kFloat ? KernelType::kF32 : KernelType::kBF16);
}

inline void* Data(const torch::Tensor& x) { return x.defined() ? x.data_ptr() : nullptr; }

}  // namespace membank
