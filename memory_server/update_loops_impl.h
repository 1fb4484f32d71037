// Included once per instruction set with MEMBANK_UPDATE_TABLE set (see CMakeLists.txt). Everything is local to the file and always inlined
// where it is shared, so that no code of one instruction set can stand in for another's.
#include "memory_server/update_loops.h"

#include <cstring>

namespace membank {
namespace {

#define MEMBANK_INLINE [[gnu::always_inline]] inline

MEMBANK_INLINE float Widen(uint16_t bits) { return __builtin_bit_cast(float, static_cast<uint32_t>(bits) << 16); }

MEMBANK_INLINE uint16_t RoundNearest(float value) {   // FloatToBF16
  const uint32_t bits = __builtin_bit_cast(uint32_t, value);
  const uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  return static_cast<uint16_t>((bits & 0x7fffffff) > 0x7f800000 ? (bits >> 16) | 0x40 : rounded);
}

// Up with the probability of the part that is cut off: right in the mean. Infinity and NaN stay what they are.
MEMBANK_INLINE uint16_t RoundStochastic(float value, uint16_t noise) {
  const uint32_t bits = __builtin_bit_cast(uint32_t, value);
  const uint32_t special = (bits >> 16) | ((bits & 0x7fffff) != 0 ? 0x40 : 0);
  return static_cast<uint16_t>((bits & 0x7f800000) == 0x7f800000 ? special : (bits + noise) >> 16);
}

// --- Optimizers --------------------------------------------------------------------------------------------------------------------------

// Runs step(i, weight) -> new weight over [0, n).
template <typename Step>
MEMBANK_INLINE void ForWeights(WeightKind kind, uint64_t n, const WeightSpan& w, const Step& step) {
  if (kind == WeightKind::kF32) {
    const float* __restrict in = static_cast<const float*>(w.in);
    float* __restrict out = static_cast<float*>(w.out);
    for (uint64_t i = 0; i < n; ++i) out[i] = step(i, in[i]);
  } else if (kind == WeightKind::kMaster) {
    float* __restrict master = w.master;
    uint16_t* __restrict out = static_cast<uint16_t*>(w.out);
    for (uint64_t i = 0; i < n; ++i) {
      master[i] = step(i, master[i]);
      out[i] = RoundNearest(master[i]);
    }
  } else {
    const uint16_t* __restrict in = static_cast<const uint16_t*>(w.in);
    uint16_t* __restrict out = static_cast<uint16_t*>(w.out);
    const uint16_t* __restrict noise = w.noise;
    for (uint64_t i = 0; i < n; ++i) out[i] = RoundStochastic(step(i, Widen(in[i])), noise[i]);
  }
}

void AdamW(WeightKind kind, const StepFactors& factors, uint64_t n, const float* __restrict g, const WeightSpan& w, float* __restrict m,
           float* __restrict v) {
  const StepFactors s = factors;
  ForWeights(kind, n, w, [=](uint64_t i, float weight) __attribute__((always_inline)) {
    const float gradient = g[i] * s.scale;
    m[i] = s.beta1 * m[i] + s.one_minus_beta1 * gradient;
    v[i] = s.beta2 * v[i] + s.one_minus_beta2 * (gradient * gradient);
    return weight * s.keep - s.rate * m[i] / (__builtin_sqrtf(v[i]) * s.inverse_root_correction2 + s.epsilon);
  });
}

float SumOfScaledSquares(uint64_t n, const float* __restrict g, float scale) {
  float lanes[kSumLanes] = {};
  uint64_t i = 0;
  for (; i + kSumLanes <= n; i += kSumLanes) {
    for (int lane = 0; lane < kSumLanes; ++lane) {
      const float gradient = g[i + lane] * scale;
      lanes[lane] += gradient * gradient;
    }
  }
  for (; i < n; ++i) lanes[i % kSumLanes] += (g[i] * scale) * (g[i] * scale);
  float sum = 0;
  for (int lane = 0; lane < kSumLanes; ++lane) sum += lanes[lane];
  return sum;
}

void RowWiseAdamW(WeightKind kind, const StepFactors& factors, uint64_t rows, uint64_t row, const float* gradients, const WeightSpan& w,
                  float* moments, float* v) {
  const StepFactors s = factors;
  const uint64_t element = kind == WeightKind::kF32 ? 4 : 2;
  for (uint64_t r = 0; r < rows; ++r) {
    const float* __restrict g = gradients + r * row;
    float* __restrict m = moments + r * row;
    v[r] = s.beta2 * v[r] + s.one_minus_beta2 * (SumOfScaledSquares(row, g, s.scale) / static_cast<float>(row));
    const float factor = s.rate / (__builtin_sqrtf(v[r]) * s.inverse_root_correction2 + s.epsilon);
    WeightSpan part = w;
    if (w.in != nullptr) part.in = static_cast<const uint8_t*>(w.in) + r * row * element;
    if (w.master != nullptr) part.master = w.master + r * row;
    if (w.noise != nullptr) part.noise = w.noise + r * row;
    part.out = static_cast<uint8_t*>(w.out) + r * row * element;
    ForWeights(kind, row, part, [=](uint64_t i, float weight) __attribute__((always_inline)) {
      m[i] = s.beta1 * m[i] + s.one_minus_beta1 * (g[i] * s.scale);
      return weight * s.keep - factor * m[i];
    });
  }
}

void Sgd(WeightKind kind, const StepFactors& factors, uint64_t n, const float* __restrict g, const WeightSpan& w) {
  const StepFactors s = factors;
  ForWeights(kind, n, w, [=](uint64_t i, float weight) __attribute__((always_inline)) { return weight * s.keep - s.rate * (g[i] * s.scale); });
}

// --- Random bits: Philox4x32-10, 16 counters at once (common/bank/block_init.h) ----------------------------------------------------------

constexpr int kLanes = 16;

void NoiseGroup(const NoiseKey& key, uint32_t group, uint16_t* out) {
  uint32_t c[4][kLanes];
  for (int i = 0; i < kLanes; ++i) {
    c[0][i] = group * kLanes + static_cast<uint32_t>(i);
    c[1][i] = static_cast<uint32_t>(key.step);
    c[2][i] = key.level;
    c[3][i] = key.cluster;
  }
  uint32_t key0 = static_cast<uint32_t>(key.seed), key1 = static_cast<uint32_t>(key.seed >> 32);
  for (int round = 0; round < 10; ++round) {
    for (int i = 0; i < kLanes; ++i) {
      const uint64_t product0 = uint64_t{0xD2511F53} * c[0][i], product1 = uint64_t{0xCD9E8D57} * c[2][i];
      c[0][i] = static_cast<uint32_t>(product1 >> 32) ^ c[1][i] ^ key0;
      c[2][i] = static_cast<uint32_t>(product0 >> 32) ^ c[3][i] ^ key1;
      c[1][i] = static_cast<uint32_t>(product1);
      c[3][i] = static_cast<uint32_t>(product0);
    }
    key0 += 0x9E3779B9;
    key1 += 0xBB67AE85;
  }
  static_assert(sizeof(c) == kNoiseGroup * sizeof(uint16_t));
  std::memcpy(out, c, sizeof(c));
}

void Noise(const NoiseKey& key, uint64_t group, uint64_t groups, uint16_t* out) {
  for (uint64_t i = 0; i < groups; ++i) NoiseGroup(key, static_cast<uint32_t>(group + i), out + i * kNoiseGroup);
}

// --- Gradients ---------------------------------------------------------------------------------------------------------------------------

void DecodeBF16(uint64_t n, const uint16_t* __restrict in, float* __restrict out) {
  for (uint64_t i = 0; i < n; ++i) out[i] = Widen(in[i]);
}

void DecodeInt8Rows(uint64_t rows, uint64_t row, const float* scales, const int8_t* in, float* out) {
  for (uint64_t r = 0; r < rows; ++r) {
    const float scale = scales[r];
    const int8_t* __restrict q = in + r * row;
    float* __restrict values = out + r * row;
    for (uint64_t i = 0; i < row; ++i) values[i] = static_cast<float>(q[i]) * scale;
  }
}

void Add(uint64_t n, const float* __restrict values, float* __restrict sum) {
  for (uint64_t i = 0; i < n; ++i) sum[i] += values[i];
}

template <typename Value>
MEMBANK_INLINE void AddSquaresOf(uint64_t n, double* lanes_, const Value& value_at) {
  double lanes[kSumLanes];
  std::memcpy(lanes, lanes_, sizeof(lanes));
  uint64_t i = 0;
  for (; i + kSumLanes <= n; i += kSumLanes) {
    for (int lane = 0; lane < kSumLanes; ++lane) {
      const double value = value_at(i + lane);
      lanes[lane] += value * value;
    }
  }
  for (; i < n; ++i) lanes[i % kSumLanes] += static_cast<double>(value_at(i)) * static_cast<double>(value_at(i));
  std::memcpy(lanes_, lanes, sizeof(lanes));
}

void AddSquares(uint64_t n, const float* __restrict values, double* lanes) {
  AddSquaresOf(n, lanes, [=](uint64_t i) __attribute__((always_inline)) { return values[i]; });
}

void AddSquaresBF16(uint64_t n, const uint16_t* __restrict values, double* lanes) {
  AddSquaresOf(n, lanes, [=](uint64_t i) __attribute__((always_inline)) { return Widen(values[i]); });
}

// An element is finite when its exponent is not all ones.
template <typename Word, Word kExponent>
bool AllFinite(uint64_t n, const uint8_t* values) {
  Word bad = 0;
  for (uint64_t i = 0; i < n; ++i) {
    Word word;
    std::memcpy(&word, values + i * sizeof(Word), sizeof(Word));
    bad |= static_cast<Word>((word & kExponent) == kExponent);
  }
  return bad == 0;
}

constexpr UpdateLoops kTable(const char* name) {
  return {name, AdamW, RowWiseAdamW, Sgd, Noise, DecodeBF16, DecodeInt8Rows, Add, AddSquares, AddSquaresBF16,
          AllFinite<uint32_t, 0x7f800000>, AllFinite<uint16_t, 0x7f80>};
}

}  // namespace

extern const UpdateLoops MEMBANK_UPDATE_TABLE;
constinit const UpdateLoops MEMBANK_UPDATE_TABLE = kTable(MEMBANK_UPDATE_NAME);

}  // namespace membank
