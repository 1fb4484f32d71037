#include "model_worker/kernels/cpu_kernels.h"

namespace membank {

// Defined by cpu_kernels_avx2.cc and cpu_kernels_avx512.cc from the same source with different compiler flags.
namespace avx2 {
const CpuKernels& Table(KernelType type);
}
namespace avx512 {
const CpuKernels& Table(KernelType type);
}

bool Supported(KernelIsa isa) {
  if (isa == KernelIsa::kAvx2) return true;   // the baseline of the whole build
  static const bool supported = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                                __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
                                __builtin_cpu_supports("avx512bf16");
  return supported;
}

const CpuKernels& Kernels(KernelType type, KernelIsa isa) {
  return isa == KernelIsa::kAvx512 ? avx512::Table(type) : avx2::Table(type);
}

const CpuKernels& Kernels(KernelType type) {
  return Kernels(type, Supported(KernelIsa::kAvx512) ? KernelIsa::kAvx512 : KernelIsa::kAvx2);
}

}  // namespace membank
