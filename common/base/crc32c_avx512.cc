// CRC32C by carry-less multiplication (Gopal et al., "Fast CRC Computation for Generic Polynomials Using PCLMULQDQ Instruction", Intel 2009).
// Compiled for AVX-512 and called only where the CPU has it: nothing of it is inline elsewhere.
#include <immintrin.h>

#include <cstddef>
#include <cstdint>
#include <cstring>

namespace membank {

uint32_t Crc32cOneStream(uint32_t inverted, const uint8_t* p, size_t size);  // crc32c.cc; of the bit-inverted checksum

namespace {

constexpr size_t kFold = 256;  // bytes in four registers, which are folded onto the next 256 bytes

// x^n mod P in the bit order of the instructions, as the factor that moves a 64-bit half ahead.
constexpr long long Power(int n) {
  uint32_t value = 0x80000000;
  for (int i = 0; i < n; ++i) value = (value >> 1) ^ ((value & 1) ? 0x82F63B78u : 0u);
  return static_cast<long long>(value) << 1;
}
constexpr long long kLow = Power(8 * kFold + 32), kHigh = Power(8 * kFold - 32);

template <bool kCopy>
uint32_t Run(uint32_t inverted, uint8_t* to, const uint8_t* from, size_t size) {
  size_t at = 0;
  const auto load = [&](size_t offset) {
    const __m512i value = _mm512_loadu_si512(from + at + offset);
    if (kCopy) _mm512_storeu_si512(to + at + offset, value);
    return value;
  };
  const __m512i factors = _mm512_set_epi64(kHigh, kLow, kHigh, kLow, kHigh, kLow, kHigh, kLow);
  const auto fold = [&](__m512i x, __m512i next) {
    return _mm512_xor_si512(_mm512_xor_si512(_mm512_clmulepi64_epi128(x, factors, 0x00), _mm512_clmulepi64_epi128(x, factors, 0x11)), next);
  };
  if (size >= 2 * kFold) {
    __m512i x0 = _mm512_xor_si512(load(0), _mm512_zextsi128_si512(_mm_cvtsi32_si128(static_cast<int>(inverted))));
    __m512i x1 = load(64), x2 = load(128), x3 = load(192);
    for (at = kFold; at + kFold <= size; at += kFold) {
      x0 = fold(x0, load(0));
      x1 = fold(x1, load(64));
      x2 = fold(x2, load(128));
      x3 = fold(x3, load(192));
    }
    uint8_t rest[kFold];
    _mm512_storeu_si512(rest, x0);
    _mm512_storeu_si512(rest + 64, x1);
    _mm512_storeu_si512(rest + 128, x2);
    _mm512_storeu_si512(rest + 192, x3);
    inverted = Crc32cOneStream(0, rest, kFold);
  }
  if (kCopy && size > at) std::memcpy(to + at, from + at, size - at);
  return Crc32cOneStream(inverted, from + at, size - at);
}

}  // namespace

uint32_t CopyAndExtendCrc32cAvx512(uint32_t crc, uint8_t* to, const uint8_t* from, size_t size) {
  return to == nullptr ? ~Run<false>(~crc, to, from, size) : ~Run<true>(~crc, to, from, size);
}

}  // namespace membank
