// The loops over elements behind optimizer.h and gradients.h, on raw pointers. One source, compiled for plain x86-64 without vectors (the
// reference), AVX2 and AVX-512, chosen at run time. No operation is fused and sums run over 16 interleaved lanes, so all three give the
// same bits: a bank does not depend on the machine that trained it. Any thread; nothing fails: callers check shapes.
#pragma once

#include <cstdint>

namespace membank {

// What is the same for all elements of a block in one step.
struct StepFactors {
  float scale = 1, keep = 1;                     // gradient factor; what weight decay leaves
  float beta1 = 0, one_minus_beta1 = 1, beta2 = 0, one_minus_beta2 = 1, epsilon = 0;
  float rate = 0;                                // AdamW: lr / (1 - beta1^t); SGD: lr
  float inverse_root_correction2 = 1;            // 1 / sqrt(1 - beta2^t)
};

// Where weights live: in the payload (F32 bank), in fp32 beside a BF16 payload, or in the BF16 payload alone, rounded stochastically.
enum class WeightKind : uint8_t { kF32, kMaster, kStochastic };

struct WeightSpan {
  const void* in = nullptr;          // kF32, kStochastic: the payload before the step
  float* master = nullptr;           // kMaster: updated in place
  void* out = nullptr;               // the payload after the step; never `in`
  const uint16_t* noise = nullptr;   // kStochastic: 16 random bits per element
};

// Names the random bits of one block in one step.
struct NoiseKey {
  uint64_t seed = 0, step = 0;
  uint32_t level = 0, cluster = 0;
};

inline constexpr uint64_t kNoiseGroup = 128;   // elements whose noise comes from 16 consecutive Philox counters
inline constexpr int kSumLanes = 16;

struct UpdateLoops {
  const char* name;

  void (*adamw)(WeightKind kind, const StepFactors& factors, uint64_t n, const float* g, const WeightSpan& w, float* m, float* v);
  // One second moment per row: v is [rows].
  void (*row_wise_adamw)(WeightKind kind, const StepFactors& factors, uint64_t rows, uint64_t row, const float* g, const WeightSpan& w,
                         float* m, float* v);
  void (*sgd)(WeightKind kind, const StepFactors& factors, uint64_t n, const float* g, const WeightSpan& w);
  // Noise of elements [group * kNoiseGroup, (group + groups) * kNoiseGroup). Element e of a group is half e % 2 of word (e / 32) of
  // Philox4x32-10 with counter {16 group + e % 32 / 2, step, level, cluster} and the seed as key.
  void (*noise)(const NoiseKey& key, uint64_t group, uint64_t groups, uint16_t* out);

  void (*decode_bf16)(uint64_t n, const uint16_t* in, float* out);
  void (*decode_int8_rows)(uint64_t rows, uint64_t row, const float* scales, const int8_t* in, float* out);
  void (*add)(uint64_t n, const float* values, float* sum);
  void (*add_squares)(uint64_t n, const float* values, double* lanes);   // element i goes to lane i % kSumLanes
  void (*add_squares_bf16)(uint64_t n, const uint16_t* values, double* lanes);
  bool (*finite_f32)(uint64_t n, const uint8_t* values);                 // any alignment
  bool (*finite_bf16)(uint64_t n, const uint8_t* values);
};

enum class UpdateIsa : uint8_t { kScalar, kAvx2, kAvx512 };

bool Supported(UpdateIsa isa);
const UpdateLoops& Loops(UpdateIsa isa);   // isa must be supported
const UpdateLoops& Loops();                // the best that this CPU has

}  // namespace membank
