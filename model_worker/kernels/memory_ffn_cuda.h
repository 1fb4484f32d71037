// The decode path of memory_ffn.h on a CUDA device: every row names its block, one launch per level, raw device pointers, no Torch and no
// libtorch_cuda. EmulateMemoryFfnCuda walks the same grid, threads and indices on the CPU and is what the tests hold against the
// reference on machines without a device.
#pragma once

#include <cstdint>

namespace membank {

// Row i uses the layer slice `slices[i]` (bf16: gate [r, d], up [r, d], down transposed [r, d]); null: the row has no memory.
// x, out [rows, d] bf16 bits; `hidden` [rows, r] fp32 scratch.
struct MemoryFfnCudaArguments {
  const uint16_t* const* slices = nullptr;
  const uint16_t* x = nullptr;
  uint16_t* out = nullptr;
  float* hidden = nullptr;
  int64_t rows = 0, width = 0, d = 0;
};

// Queues on `stream` (a cudaStream_t). Returns a cudaError_t; 0 is success.
int LaunchMemoryFfnCuda(const MemoryFfnCudaArguments& arguments, void* stream);

void EmulateMemoryFfnCuda(const MemoryFfnCudaArguments& arguments);

}  // namespace membank
