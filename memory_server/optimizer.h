// The optimizers, one pass over a block: gradient in, weights, moments and payload out, CRC32C of the payload on the way.
// AdamW is PyTorch's (decoupled decay, bias correction by the block's own count of steps): p *= 1 - lr wd; m = b1 m + (1 - b1) g;
// v = b2 v + (1 - b2) g^2; p -= lr (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps). Row-wise AdamW has one v per row of the block, moved by
// the mean of the row's g^2. SGD: p = p (1 - lr wd) - lr g.
// Each operation rounds once (no fused multiply-add), so every vector width and every machine gives the same bits. Memory-bound:
// tests/bench/memory_server. Pure functions, any thread.
#pragma once

#include <cstdint>

#include "common/bank/block_layout.h"
#include "common/bank/training.h"
#include "memory_server/gradients.h"
#include "memory_server/update_loops.h"

namespace membank {

// `touched_steps`: steps that the moments have seen, this one included (t). `missed_steps`: steps since the block was touched last, this one
// included.
StepFactors MakeStepFactors(const RunSettings& run, const ApplyParameters& parameters, uint64_t touched_steps, uint64_t missed_steps = 1);

// The arrays of one block. Which weights are set says where they live (WeightKind).
struct BlockArrays {
  BlockShape shape;
  DType payload = DType::kF32;                   // F32 or BF16
  float* weights = nullptr;                      // fp32 beside a BF16 payload: updated in place
  const uint8_t* payload_in = nullptr;           // otherwise: the payload before the step
  uint8_t* payload_out = nullptr;                // written; never payload_in
  float* m = nullptr;                            // AdamW: per element
  float* v = nullptr;                            // AdamW: per element; row-wise: per row
  NoiseKey noise;                                // for a BF16 payload without weights
};

// Returns the CRC32C of payload_out.
uint32_t UpdateBlock(OptimizerKind optimizer, const StepFactors& factors, const Gradient& gradient, const BlockArrays& arrays,
                     const UpdateLoops& loops = Loops());

}  // namespace membank
