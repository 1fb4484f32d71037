#include <cmath>

#include "model_worker/kernels/memory_ffn_cuda.h"
#include "model_worker/kernels/memory_ffn_cuda_indices.h"
#include "common/tensors/dtype.h"

namespace membank {

void EmulateMemoryFfnCuda(const MemoryFfnCudaArguments& a) {
  for (unsigned block = 0; block < HiddenBlocks(a.rows, a.width); ++block) {
    for (int warp = 0; warp < kCudaWarps; ++warp) {
      const CudaHiddenIndex at = HiddenIndex(block, warp, a.width);
      if (at.unit >= a.width || a.slices[at.row] == nullptr) continue;
      const uint16_t* gate = a.slices[at.row] + at.unit * a.d;
      const uint16_t* up = gate + a.width * a.d;
      float g = 0, u = 0;
      for (int64_t i = 0; i < a.d; ++i) {
        g += BF16ToFloat(a.x[at.row * a.d + i]) * BF16ToFloat(gate[i]);
        u += BF16ToFloat(a.x[at.row * a.d + i]) * BF16ToFloat(up[i]);
      }
      a.hidden[at.row * a.width + at.unit] = g / (1.0f + std::exp(-g)) * u;
    }
  }
  for (unsigned block = 0; block < OutputBlocks(a.rows, a.d); ++block) {
    for (int thread = 0; thread < kCudaThreads; ++thread) {
      const CudaOutputIndex at = OutputIndex(block, thread, a.d);
      if (at.column >= a.d || a.slices[at.row] == nullptr) continue;
      const uint16_t* down = a.slices[at.row] + 2 * a.width * a.d + at.column;
      float sum = BF16ToFloat(a.out[at.row * a.d + at.column]);
      for (int64_t unit = 0; unit < a.width; ++unit) sum += a.hidden[at.row * a.width + unit] * BF16ToFloat(down[unit * a.d]);
      a.out[at.row * a.d + at.column] = FloatToBF16(sum);
    }
  }
}

}  // namespace membank
