#include "model_worker/kernels/memory_ffn_cuda.h"

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include "model_worker/kernels/memory_ffn_cuda_indices.h"

namespace membank {
namespace {

__device__ float FromBits(uint16_t bits) { return __uint_as_float(static_cast<unsigned>(bits) << 16); }

// One warp per hidden unit of one row: lanes stride over d.
__global__ void HiddenKernel(MemoryFfnCudaArguments a) {
  const CudaHiddenIndex at = HiddenIndex(blockIdx.x, threadIdx.x / kCudaWarp, a.width);
  if (at.unit >= a.width || a.slices[at.row] == nullptr) return;
  const int lane = threadIdx.x % kCudaWarp;
  const uint16_t* gate = a.slices[at.row] + at.unit * a.d;
  const uint16_t* up = gate + a.width * a.d;
  const uint16_t* x = a.x + at.row * a.d;
  float g = 0, u = 0;
  for (int64_t i = lane; i < a.d; i += kCudaWarp) {
    const float value = FromBits(x[i]);
    g += value * FromBits(gate[i]);
    u += value * FromBits(up[i]);
  }
  for (int offset = kCudaWarp / 2; offset > 0; offset /= 2) {
    g += __shfl_down_sync(0xffffffffu, g, offset);
    u += __shfl_down_sync(0xffffffffu, u, offset);
  }
  if (lane == 0) a.hidden[at.row * a.width + at.unit] = g / (1.0f + __expf(-g)) * u;
}

// One thread per output column of one row.
__global__ void OutputKernel(MemoryFfnCudaArguments a) {
  const CudaOutputIndex at = OutputIndex(blockIdx.x, threadIdx.x, a.d);
  if (at.column >= a.d || a.slices[at.row] == nullptr) return;
  const uint16_t* down = a.slices[at.row] + 2 * a.width * a.d + at.column;
  const float* hidden = a.hidden + at.row * a.width;
  float sum = FromBits(a.out[at.row * a.d + at.column]);
  for (int64_t unit = 0; unit < a.width; ++unit) sum += hidden[unit] * FromBits(down[unit * a.d]);
  a.out[at.row * a.d + at.column] = __bfloat16_as_ushort(__float2bfloat16_rn(sum));
}

}  // namespace

int LaunchMemoryFfnCuda(const MemoryFfnCudaArguments& a, void* stream) {
  if (a.rows == 0 || a.width == 0) return 0;
  const cudaStream_t queue = static_cast<cudaStream_t>(stream);
  HiddenKernel<<<HiddenBlocks(a.rows, a.width), kCudaThreads, 0, queue>>>(a);
  OutputKernel<<<OutputBlocks(a.rows, a.d), kCudaThreads, 0, queue>>>(a);
  return static_cast<int>(cudaGetLastError());
}

}  // namespace membank
