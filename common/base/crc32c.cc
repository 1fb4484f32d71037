#include "common/base/crc32c.h"

#include <nmmintrin.h>

#include <array>
#include <cstring>

namespace membank {

uint32_t CopyAndExtendCrc32cAvx512(uint32_t crc, uint8_t* to, const uint8_t* from, size_t size);  // crc32c_avx512.cc
uint32_t Crc32cOneStream(uint32_t inverted, const uint8_t* p, size_t size);                        // below; used there, too

namespace {

uint64_t Load64(const uint8_t* p) {
  uint64_t value;
  std::memcpy(&value, p, sizeof(value));
  return value;
}

// Three streams of kStride bytes hide the 3-cycle latency of the crc32 instruction; their results are joined by multiplying with
// x^(8 * kStride) mod P, done with a table of the operator's action on each byte (Mark Adler's method). Short, so that little of a received
// slice is left over for a single stream.
constexpr size_t kStride = 1024;
using ShiftTable = std::array<std::array<uint32_t, 256>, 4>;

uint32_t ShiftByZeros(uint32_t crc, size_t count) {
  for (size_t i = 0; i < count; i += 8) crc = static_cast<uint32_t>(_mm_crc32_u64(crc, 0));
  return crc;
}

ShiftTable MakeShiftTable() {
  ShiftTable table;
  for (int byte = 0; byte < 4; ++byte)
    for (uint32_t value = 0; value < 256; ++value) table[byte][value] = 0;
  for (int byte = 0; byte < 4; ++byte) {
    for (int bit = 0; bit < 8; ++bit) {
      const uint32_t image = ShiftByZeros(1u << (8 * byte + bit), kStride);
      for (uint32_t value = 0; value < 256; ++value)
        if (value & (1u << bit)) table[byte][value] ^= image;
    }
  }
  return table;
}

uint32_t Shift(const ShiftTable& table, uint32_t crc) {
  return table[0][crc & 0xff] ^ table[1][(crc >> 8) & 0xff] ^ table[2][(crc >> 16) & 0xff] ^ table[3][crc >> 24];
}

uint32_t WithSse42(uint32_t crc, uint8_t* to, const uint8_t* p, size_t size) {
  static const ShiftTable table = MakeShiftTable();
  uint64_t c0 = ~crc;
  while (size >= 3 * kStride) {
    uint64_t c1 = 0, c2 = 0;
    for (size_t i = 0; i < kStride; i += 8) {
      c0 = _mm_crc32_u64(c0, Load64(p + i));
      c1 = _mm_crc32_u64(c1, Load64(p + kStride + i));
      c2 = _mm_crc32_u64(c2, Load64(p + 2 * kStride + i));
    }
    c0 = Shift(table, static_cast<uint32_t>(c0)) ^ c1;
    c0 = Shift(table, static_cast<uint32_t>(c0)) ^ c2;
    if (to != nullptr) {  // now in the first-level cache
      std::memcpy(to, p, 3 * kStride);
      to += 3 * kStride;
    }
    p += 3 * kStride;
    size -= 3 * kStride;
  }
  if (to != nullptr && size > 0) std::memcpy(to, p, size);
  return ~Crc32cOneStream(static_cast<uint32_t>(c0), p, size);
}

bool HasAvx512() {  // x86-64-v4, which clang does not know by that name
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512cd") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}

constexpr Crc32cWay kWays[kCrc32cWays] = {
    {"avx512", [] { return HasAvx512() && __builtin_cpu_supports("vpclmulqdq"); }, CopyAndExtendCrc32cAvx512},
    {"sse4.2", [] { return true; }, WithSse42},
};

const Crc32cWay& Best() {
  static const Crc32cWay& best = kWays[0].supported() ? kWays[0] : kWays[1];
  return best;
}

}  // namespace

uint32_t Crc32cOneStream(uint32_t inverted, const uint8_t* p, size_t size) {
  uint64_t c = inverted;
  for (; size >= 8; size -= 8, p += 8) c = _mm_crc32_u64(c, Load64(p));
  uint32_t last = static_cast<uint32_t>(c);
  for (; size > 0; --size, ++p) last = _mm_crc32_u8(last, *p);
  return last;
}

const Crc32cWay& GetCrc32cWay(int i) { return kWays[i]; }

uint32_t ExtendCrc32c(uint32_t crc, const void* data, size_t size) {
  return Best().copy_and_extend(crc, nullptr, static_cast<const uint8_t*>(data), size);
}

uint32_t CopyAndExtendCrc32c(uint32_t crc, void* to, const void* from, size_t size) {
  return Best().copy_and_extend(crc, static_cast<uint8_t*>(to), static_cast<const uint8_t*>(from), size);
}

}  // namespace membank
