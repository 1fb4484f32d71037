#include "memory_server/block_update.h"

#include <algorithm>

#include "common/bank/block_init.h"
#include "memory_server/optimizer.h"

namespace membank {
namespace {

float* Floats(Buffer& buffer) { return buffer.size() == 0 ? nullptr : reinterpret_cast<float*>(buffer.data()); }

void Shed(Buffer* array, BufferPool* buffers) {
  if (array->size() > 0) buffers->Release(std::move(*array));
  *array = Buffer();
}

void Zero(Buffer* array, uint64_t bytes, BufferPool* buffers) {
  if (array->size() != bytes) {
    Shed(array, buffers);
    if (bytes > 0) *array = buffers->Acquire(bytes);
  }
  std::fill_n(array->data(), bytes, uint8_t{0});
}

// What the run's optimizer keeps, in bytes.
struct StateSizes {
  uint64_t weights = 0, m = 0, v = 0;
};
StateSizes SizesOf(const BankSpec& spec, uint32_t level, const RunSettings& run) {
  const BlockShape shape = ShapeOf(spec, level);
  const uint64_t all = shape.elements() * sizeof(float);
  StateSizes sizes;
  if (spec.dtype == DType::kBF16 && !run.stochastic_rounding) sizes.weights = all;
  if (run.optimizer != OptimizerKind::kSgd) sizes.m = all;
  sizes.v = run.optimizer == OptimizerKind::kRowWiseAdamW ? shape.rows * sizeof(float) : sizes.m;
  return sizes;
}

// An untouched block has its exact initial values; one that was trained without fp32 weights starts from its payload.
void PrepareWeights(const BankSpec& spec, BlockId id, const BlockStep& step, uint64_t bytes, BufferPool* buffers, OptimizerState* state) {
  if (state->weights.size() == bytes) return;
  Shed(&state->weights, buffers);
  if (bytes == 0) return;
  state->weights = buffers->Acquire(bytes);
  const auto weights = absl::MakeSpan(Floats(state->weights), spec.BlockElements(id.level));
  if (step.version == 0) InitBlock(spec, id, weights);
  else DecodePayload(step.before->span(), spec.dtype, weights);
}

// Moments of another optimizer are of no use: new ones start.
void PrepareMoments(const StateSizes& sizes, BufferPool* buffers, OptimizerState* state) {
  if (state->m.size() == sizes.m && state->v.size() == sizes.v) return;
  Zero(&state->m, sizes.m, buffers);
  Zero(&state->v, sizes.v, buffers);
  state->adam_steps = 0;
}

}  // namespace

uint64_t StateBytes(const BankSpec& spec, uint32_t level, const RunSettings& run) {
  const StateSizes sizes = SizesOf(spec, level, run);
  return sizes.weights + sizes.m + sizes.v;
}

bool StateFits(const BankSpec& spec, BlockId id, uint64_t weights_bytes, uint64_t m_bytes, uint64_t v_bytes) {
  const BlockShape shape = ShapeOf(spec, id.level);
  const uint64_t all = shape.elements() * sizeof(float);
  if (weights_bytes != 0 && (spec.dtype == DType::kF32 || weights_bytes != all)) return false;
  return m_bytes == 0 ? v_bytes == 0 : m_bytes == all && (v_bytes == all || v_bytes == shape.rows * sizeof(float));
}

uint32_t ApplyGradient(const BankSpec& spec, BlockId id, const RunSettings& run, const ApplyParameters& parameters, const BlockStep& step,
                       const Gradient& gradient, BufferPool* buffers, OptimizerState* state, Buffer* after) {
  const StateSizes sizes = SizesOf(spec, id.level, run);
  PrepareWeights(spec, id, step, sizes.weights, buffers, state);
  PrepareMoments(sizes, buffers, state);
  if (run.optimizer != OptimizerKind::kSgd) ++state->adam_steps;
  BlockArrays arrays;
  arrays.shape = ShapeOf(spec, id.level);
  arrays.payload = spec.dtype;
  arrays.weights = Floats(state->weights);
  if (step.before != nullptr) arrays.payload_in = step.before->data();
  arrays.payload_out = after->data();
  arrays.m = Floats(state->m);
  arrays.v = Floats(state->v);
  arrays.noise = {spec.seed, step.step, id.level, id.cluster};
  return UpdateBlock(run.optimizer, MakeStepFactors(run, parameters, state->adam_steps, step.step - step.version), gradient, arrays);
}

}  // namespace membank
