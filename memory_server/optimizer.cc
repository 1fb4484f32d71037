#include "memory_server/optimizer.h"

#include <algorithm>
#include <cmath>

#include "common/base/crc32c.h"
#include "common/tensors/dtype.h"

// One clone per vector width, chosen at load time; ifunc resolvers run before sanitizers are ready.
#if defined(__GNUC__) && !defined(__clang__) && !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
#define MEMBANK_VECTOR_CLONES __attribute__((target_clones("arch=x86-64-v4", "default")))
#else
#define MEMBANK_VECTOR_CLONES
#endif

namespace membank {
namespace {

// Elements between two CRC updates: the payload is still in the second-level cache, and its bytes are a multiple of the 12,288 that the
// CRC works on in three streams.
constexpr uint64_t kChunk = 12288;

inline float ToFloat(float value) { return value; }
inline float ToFloat(uint16_t bits) { return BF16ToFloat(bits); }

struct AdamW {
  StepFactors s;
  [[gnu::always_inline]] float Step(float w, float gradient, float& m, float& v) const {
    const float g = gradient * s.scale;
    m = s.beta1 * m + s.one_minus_beta1 * g;
    v = s.beta2 * v + s.one_minus_beta2 * (g * g);
    return w * s.keep - s.rate * m / (std::sqrt(v) * s.inverse_root_correction2 + s.epsilon);
  }
};

struct Sgd {
  StepFactors s;
  [[gnu::always_inline]] float Step(float w, float gradient) const { return w * s.keep - s.rate * (gradient * s.scale); }
};

// The loops. In an F32 bank weights come from one payload and go to the next; in a BF16 bank they stay and the payload is their rounding.
template <typename G>
[[gnu::always_inline]] inline void AdamWToF32(AdamW step, uint64_t n, const G* __restrict g, const float* __restrict in,
                                              float* __restrict out, float* __restrict m, float* __restrict v) {
  for (uint64_t i = 0; i < n; ++i) out[i] = step.Step(in[i], ToFloat(g[i]), m[i], v[i]);
}
template <typename G>
[[gnu::always_inline]] inline void AdamWToBF16(AdamW step, uint64_t n, const G* __restrict g, float* __restrict w,
                                               uint16_t* __restrict out, float* __restrict m, float* __restrict v) {
  for (uint64_t i = 0; i < n; ++i) {
    w[i] = step.Step(w[i], ToFloat(g[i]), m[i], v[i]);
    out[i] = FloatToBF16(w[i]);
  }
}

MEMBANK_VECTOR_CLONES void AdamWF32F32(AdamW step, uint64_t n, const float* g, const float* in, float* out, float* m, float* v) {
  AdamWToF32(step, n, g, in, out, m, v);
}
MEMBANK_VECTOR_CLONES void AdamWBF16F32(AdamW step, uint64_t n, const uint16_t* g, const float* in, float* out, float* m, float* v) {
  AdamWToF32(step, n, g, in, out, m, v);
}
MEMBANK_VECTOR_CLONES void AdamWF32BF16(AdamW step, uint64_t n, const float* g, float* w, uint16_t* out, float* m, float* v) {
  AdamWToBF16(step, n, g, w, out, m, v);
}
MEMBANK_VECTOR_CLONES void AdamWBF16BF16(AdamW step, uint64_t n, const uint16_t* g, float* w, uint16_t* out, float* m, float* v) {
  AdamWToBF16(step, n, g, w, out, m, v);
}

template <typename G>
void SgdLoop(Sgd step, uint64_t n, const G* __restrict g, const BlockArrays& arrays, uint64_t first) {
  if (arrays.weights == nullptr) {
    const float* __restrict in = arrays.payload_in + first;
    float* __restrict out = reinterpret_cast<float*>(arrays.payload_out) + first;
    for (uint64_t i = 0; i < n; ++i) out[i] = step.Step(in[i], ToFloat(g[i]));
    return;
  }
  float* __restrict w = arrays.weights + first;
  uint16_t* __restrict out = reinterpret_cast<uint16_t*>(arrays.payload_out) + first;
  for (uint64_t i = 0; i < n; ++i) {
    w[i] = step.Step(w[i], ToFloat(g[i]));
    out[i] = FloatToBF16(w[i]);
  }
}

// Runs update(first, n) over the block and sums the CRC of the payload behind it.
template <typename Update>
uint32_t InChunks(const BlockArrays& arrays, const Update& update) {
  const uint64_t element = arrays.weights == nullptr ? sizeof(float) : sizeof(uint16_t);
  uint32_t crc = 0;
  for (uint64_t first = 0; first < arrays.elements; first += kChunk) {
    const uint64_t n = std::min(kChunk, arrays.elements - first);
    update(first, n);
    crc = ExtendCrc32c(crc, arrays.payload_out + first * element, n * element);
  }
  return crc;
}

// base^exponent by squaring: the same bits everywhere, which libm does not promise.
double Power(double base, uint64_t exponent) {
  double result = 1;
  for (; exponent > 0; exponent >>= 1, base *= base)
    if (exponent & 1) result *= base;
  return result;
}

}  // namespace

StepFactors MakeStepFactors(const RunSettings& run, const ApplyParameters& parameters, uint64_t touched_steps) {
  const double rate = parameters.learning_rate;
  StepFactors factors;
  factors.scale = parameters.scale;
  factors.keep = static_cast<float>(1.0 - rate * parameters.weight_decay);
  factors.rate = parameters.learning_rate;
  if (run.optimizer == OptimizerKind::kSgd) return factors;
  factors.beta1 = run.beta1;
  factors.one_minus_beta1 = static_cast<float>(1.0 - run.beta1);
  factors.beta2 = run.beta2;
  factors.one_minus_beta2 = static_cast<float>(1.0 - run.beta2);
  factors.epsilon = run.epsilon;
  factors.rate = static_cast<float>(rate / (1.0 - Power(run.beta1, touched_steps)));
  factors.inverse_root_correction2 = static_cast<float>(1.0 / std::sqrt(1.0 - Power(run.beta2, touched_steps)));
  return factors;
}

uint32_t AdamWUpdate(const StepFactors& factors, const Gradient& gradient, const BlockArrays& a) {
  const AdamW step{factors};
  const float* const g32 = reinterpret_cast<const float*>(gradient.bytes.data());
  const uint16_t* const g16 = reinterpret_cast<const uint16_t*>(gradient.bytes.data());
  const bool bf16_gradient = gradient.dtype == DType::kBF16;
  if (a.weights == nullptr) {
    float* const out = reinterpret_cast<float*>(a.payload_out);
    return InChunks(a, [&](uint64_t i, uint64_t n) {
      if (bf16_gradient) AdamWBF16F32(step, n, g16 + i, a.payload_in + i, out + i, a.m + i, a.v + i);
      else AdamWF32F32(step, n, g32 + i, a.payload_in + i, out + i, a.m + i, a.v + i);
    });
  }
  uint16_t* const out = reinterpret_cast<uint16_t*>(a.payload_out);
  return InChunks(a, [&](uint64_t i, uint64_t n) {
    if (bf16_gradient) AdamWBF16BF16(step, n, g16 + i, a.weights + i, out + i, a.m + i, a.v + i);
    else AdamWF32BF16(step, n, g32 + i, a.weights + i, out + i, a.m + i, a.v + i);
  });
}

uint32_t SgdUpdate(const StepFactors& factors, const Gradient& gradient, const BlockArrays& arrays) {
  const Sgd step{factors};
  return InChunks(arrays, [&](uint64_t first, uint64_t n) {
    if (gradient.dtype == DType::kBF16) SgdLoop(step, n, reinterpret_cast<const uint16_t*>(gradient.bytes.data()) + first, arrays, first);
    else SgdLoop(step, n, reinterpret_cast<const float*>(gradient.bytes.data()) + first, arrays, first);
  });
}

}  // namespace membank
