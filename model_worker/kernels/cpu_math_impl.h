// Scalars and vectors of one instruction set: element types, exp, and the small fp32 matrix product that attention is made of.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>

// In every loop, however many there are: a loop that calls is a loop that is not vectorised.
#define MEMBANK_INLINE inline __attribute__((always_inline))

namespace membank::MEMBANK_ISA {
namespace {

struct BF16 {
  uint16_t bits;
};

MEMBANK_INLINE float Load(const float* p, int64_t i) { return p[i]; }
MEMBANK_INLINE float Load(const BF16* p, int64_t i) { return std::bit_cast<float>(static_cast<uint32_t>(p[i].bits) << 16); }
MEMBANK_INLINE void Store(float* p, int64_t i, float value) { p[i] = value; }
MEMBANK_INLINE void Store(BF16* p, int64_t i, float value) {   // to nearest even; NaN stays NaN
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  p[i].bits = static_cast<uint16_t>(value != value ? 0x7fc0u : rounded);
}

// Relative error below 2e-7; saturates instead of overflowing (exp(-88) is already nothing beside a softmax's largest term, 1).
MEMBANK_INLINE float Exp(float x) {
  x = x < -87.0f ? -87.0f : (x > 88.0f ? 88.0f : x);   // NaN stays NaN
  const float n = __builtin_rintf(x * 1.44269504088896341f);
  float r = x - n * 0.693359375f;
  r = r + n * 2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  return p * std::bit_cast<float>((static_cast<int32_t>(n) + 127) << 23);
}

MEMBANK_INLINE float Sigmoid(float x) { return 1.0f / (1.0f + Exp(-x)); }

// The standard normal distribution function, (1 + erf(x / sqrt 2)) / 2: Abramowitz and Stegun 7.1.26, absolute error below 1e-7.
MEMBANK_INLINE float NormalBelow(float x) {
  const float z = (x < 0 ? -x : x) * 0.707106781186548f;
  const float t = 1.0f / (1.0f + 0.3275911f * z);
  float p = 1.061405429f;
  p = p * t - 1.453152027f;
  p = p * t + 1.421413741f;
  p = p * t - 0.284496736f;
  p = p * t + 0.254829592f;
  const float above = 0.5f * p * t * Exp(-z * z);
  return x < 0 ? above : 1.0f - above;
}

#ifdef __AVX512F__
constexpr int kLanes = 16, kTileRows = 8;
#else
constexpr int kLanes = 8, kTileRows = 4;
#endif
typedef float Vector __attribute__((vector_size(kLanes * sizeof(float)), aligned(4), may_alias));
constexpr int64_t kPad = 2 * kLanes;
inline int64_t Padded(int64_t n) { return (n + kPad - 1) / kPad * kPad; }

// c [R, 2 vectors] (+)= a [R, k] b [k, 2 vectors]
template <int R, bool kAdd>
inline void Tile(int64_t k, const float* a, int64_t lda, const float* b, int64_t ldb, float* c, int64_t ldc) {
  Vector sum[R][2];
  for (int i = 0; i < R; ++i) {
    for (int j = 0; j < 2; ++j) sum[i][j] = kAdd ? *reinterpret_cast<const Vector*>(c + i * ldc + j * kLanes) : Vector{};
  }
  for (int64_t l = 0; l < k; ++l) {
    const Vector b0 = *reinterpret_cast<const Vector*>(b + l * ldb);
    const Vector b1 = *reinterpret_cast<const Vector*>(b + l * ldb + kLanes);
    for (int i = 0; i < R; ++i) {
      const float x = a[i * lda + l];
      sum[i][0] += x * b0;
      sum[i][1] += x * b1;
    }
  }
  for (int i = 0; i < R; ++i) {
    for (int j = 0; j < 2; ++j) *reinterpret_cast<Vector*>(c + i * ldc + j * kLanes) = sum[i][j];
  }
}

// c [m, n] (+)= a [m, k] b [k, n], row-major fp32 scratch; n a multiple of kPad.
template <bool kAdd>
inline void MatMul(int64_t m, int64_t n, int64_t k, const float* a, int64_t lda, const float* b, int64_t ldb, float* c, int64_t ldc) {
  for (int64_t j = 0; j < n; j += kPad) {
    int64_t i = 0;
    for (; i + kTileRows <= m; i += kTileRows) Tile<kTileRows, kAdd>(k, a + i * lda, lda, b + j, ldb, c + i * ldc + j, ldc);
    for (; i + 2 <= m; i += 2) Tile<2, kAdd>(k, a + i * lda, lda, b + j, ldb, c + i * ldc + j, ldc);
    for (; i < m; ++i) Tile<1, kAdd>(k, a + i * lda, lda, b + j, ldb, c + i * ldc + j, ldc);
  }
}

}  // namespace
}  // namespace membank::MEMBANK_ISA
