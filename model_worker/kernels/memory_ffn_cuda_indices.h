// The index arithmetic that the CUDA kernel and its emulation share: which row, unit and column a thread works on.
#pragma once

#include <cstdint>

#ifdef __CUDACC__
#define MEMBANK_HOST_DEVICE __host__ __device__
#else
#define MEMBANK_HOST_DEVICE
#endif

namespace membank {

constexpr int kCudaWarp = 32, kCudaThreads = 256, kCudaWarps = kCudaThreads / kCudaWarp;

struct CudaHiddenIndex {
  int64_t row, unit;
};
struct CudaOutputIndex {
  int64_t row, column;
};

MEMBANK_HOST_DEVICE inline int64_t CudaCeil(int64_t a, int64_t b) { return (a + b - 1) / b; }
MEMBANK_HOST_DEVICE inline unsigned HiddenBlocks(int64_t rows, int64_t width) { return static_cast<unsigned>(rows * CudaCeil(width, kCudaWarps)); }
MEMBANK_HOST_DEVICE inline unsigned OutputBlocks(int64_t rows, int64_t d) { return static_cast<unsigned>(rows * CudaCeil(d, kCudaThreads)); }

MEMBANK_HOST_DEVICE inline CudaHiddenIndex HiddenIndex(unsigned block, int warp, int64_t width) {
  const int64_t per_row = CudaCeil(width, kCudaWarps);
  return {block / per_row, block % per_row * kCudaWarps + warp};
}

MEMBANK_HOST_DEVICE inline CudaOutputIndex OutputIndex(unsigned block, int thread, int64_t d) {
  const int64_t per_row = CudaCeil(d, kCudaThreads);
  return {block / per_row, block % per_row * kCudaThreads + thread};
}

}  // namespace membank
