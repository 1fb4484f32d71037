// Included once per instruction set by cpu_kernels_<isa>.cc, which defines MEMBANK_ISA. Everything is in an unnamed namespace and nothing
// of the standard library is instantiated with code in it that the linker could share between the two instruction sets.
#pragma once

#include "model_worker/kernels/cpu_kernels.h"
#include "model_worker/kernels/cpu_math_impl.h"
#include "model_worker/kernels/cpu_attention_impl.h"
#include "model_worker/kernels/cpu_elementwise_impl.h"
#include "model_worker/kernels/cpu_linear_impl.h"
#include "model_worker/kernels/cpu_product_impl.h"

#define MEMBANK_STRING_INNER_(x) #x
#define MEMBANK_STRING_(x) MEMBANK_STRING_INNER_(x)

namespace membank::MEMBANK_ISA {
namespace {

template <typename T>
constexpr CpuKernels MakeTable() {
  return {MEMBANK_STRING_(MEMBANK_ISA), Norm<T>, NormBackward<T>, Rope<T>, Activate<T>, ActivateBackward<T>, Attention<T>,
          AttentionBackward<T>, LinearFewRows<T>, MemoryFfnRows<T>, CrossEntropy<T>, Accumulate<T>, MatrixProduct<T>, Pack<T>, PackedBytes<T>};
}

}  // namespace

const CpuKernels& Table(KernelType type) {
  static constexpr CpuKernels f32 = MakeTable<float>(), bf16 = MakeTable<BF16>();
  return type == KernelType::kF32 ? f32 : bf16;
}

}  // namespace membank::MEMBANK_ISA
