#include "common/base/crc32c.h"

#include <nmmintrin.h>

#include <array>
#include <cstring>

namespace membank {
namespace {

// Three streams of kStride bytes hide the 3-cycle latency of the crc32 instruction; their results are joined by multiplying with
// x^(8 * kStride) mod P, done with a table of the operator's action on each byte (Mark Adler's method).
constexpr size_t kStride = 4096;
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

uint64_t Load64(const uint8_t* p) {
  uint64_t value;
  std::memcpy(&value, p, sizeof(value));
  return value;
}

}  // namespace

uint32_t ExtendCrc32c(uint32_t crc, const void* data, size_t size) {
  static const ShiftTable table = MakeShiftTable();
  const uint8_t* p = static_cast<const uint8_t*>(data);
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
    p += 3 * kStride;
    size -= 3 * kStride;
  }
  for (; size >= 8; size -= 8, p += 8) c0 = _mm_crc32_u64(c0, Load64(p));
  uint32_t c = static_cast<uint32_t>(c0);
  for (; size > 0; --size, ++p) c = _mm_crc32_u8(c, *p);
  return ~c;
}

}  // namespace membank
