// One step of one block: what the run's optimizer keeps beside the payload is made when it is missing and dropped when the run has no use
// for it, then optimizer.h runs. Pure functions, any thread.
#pragma once

#include "common/bank/bank_spec.h"
#include "common/bank/training.h"
#include "memory_server/buffer_pool.h"
#include "memory_server/gradients.h"

namespace membank {

// Optimizer state of a touched block.
struct OptimizerState {
  Buffer weights;                // fp32; of BF16 banks unless the run rounds stochastically. Otherwise the payload is the weights
  Buffer m;                      // fp32 per element; AdamW and row-wise AdamW
  Buffer v;                      // fp32 per element with AdamW, per row with row-wise AdamW
  uint64_t adam_steps = 0;       // steps that m and v have seen, for bias correction

  uint64_t bytes() const { return weights.size() + m.size() + v.size(); }
};

// Bytes of the state after a step of this run.
uint64_t StateBytes(const BankSpec& spec, uint32_t level, const RunSettings& run);
// The sizes that a state of this bank may have.
bool StateFits(const BankSpec& spec, BlockId id, uint64_t weights_bytes, uint64_t m_bytes, uint64_t v_bytes);

struct BlockStep {
  uint64_t step = 0;             // that is applied
  uint64_t version = 0;          // of the block before; 0 = untouched
  const Buffer* before = nullptr;  // payload before the step; not needed for an untouched block with fp32 weights of its own
};

// Writes the payload after the step (BlockBytes) and returns its CRC32C. What the state lacks comes from `buffers`, what it sheds goes there.
uint32_t ApplyGradient(const BankSpec& spec, BlockId id, const RunSettings& run, const ApplyParameters& parameters, const BlockStep& step,
                       const Gradient& gradient, BufferPool* buffers, OptimizerState* state, Buffer* after);

}  // namespace membank
