// The optimizers, one pass over a block: gradient in (F32 or BF16), weights, moments and payload out, CRC32C of the payload on the way.
// AdamW is PyTorch's (decoupled decay, bias correction by the block's own count of steps): p *= 1 - lr wd; m = b1 m + (1 - b1) g;
// v = b2 v + (1 - b2) g^2; p -= lr (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps). SGD: p = p (1 - lr wd) - lr g.
// Each operation rounds once (no fused multiply-add), so every vector width and every machine gives the same bits. Memory-bound:
// tests/bench/memory_server. Pure functions, any thread.
#pragma once

#include <cstdint>

#include "common/bank/training.h"
#include "memory_server/gradients.h"

namespace membank {

// What is the same for all elements of a block in one step.
struct StepFactors {
  float scale = 1, keep = 1;                     // gradient factor; 1 - lr * weight decay
  float beta1 = 0, one_minus_beta1 = 1, beta2 = 0, one_minus_beta2 = 1, epsilon = 0;
  float rate = 0;                                // AdamW: lr / (1 - beta1^t); SGD: lr
  float inverse_root_correction2 = 1;            // 1 / sqrt(1 - beta2^t)
};

// `touched_steps`: AdamW steps applied to the block, this one included (t).
StepFactors MakeStepFactors(const RunSettings& run, const ApplyParameters& parameters, uint64_t touched_steps);

// The arrays of one block, `elements` long. BF16 banks keep fp32 weights beside the payload; of F32 banks the payload is the weights.
struct BlockArrays {
  uint64_t elements = 0;
  float* weights = nullptr;                      // BF16 bank: updated in place
  const float* payload_in = nullptr;             // F32 bank: the payload before the step
  uint8_t* payload_out = nullptr;                // written; never the buffer of payload_in
  float* m = nullptr;                            // AdamW only
  float* v = nullptr;
};

// Both return the CRC32C of payload_out.
uint32_t AdamWUpdate(const StepFactors& factors, const Gradient& gradient, const BlockArrays& arrays);
uint32_t SgdUpdate(const StepFactors& factors, const Gradient& gradient, const BlockArrays& arrays);

}  // namespace membank
