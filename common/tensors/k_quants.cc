#include "common/tensors/k_quants.h"

#include <cstring>

#include "common/tensors/dtype.h"

namespace membank {
namespace {

constexpr size_t kSuperBlock = 256;

float LoadHalf(const uint8_t* in) {
  uint16_t bits;
  std::memcpy(&bits, in, sizeof(bits));
  return F16ToFloat(bits);
}

// The eight 6-bit scales and minima of Q4_K and Q5_K in 12 bytes: the first four of each in the low 6 bits of bytes 0-3 and 4-7, the last
// four as nibbles in bytes 8-11 with their upper two bits on top of bytes 0-3 and 4-7.
struct Scales {
  explicit Scales(const uint8_t* in) {
    for (size_t i = 0; i < 4; ++i) {
      scale[i] = in[i] & 63;
      minimum[i] = in[i + 4] & 63;
      scale[i + 4] = (in[i + 8] & 15) | ((in[i] >> 2) & 48);
      minimum[i + 4] = (in[i + 8] >> 4) | ((in[i + 4] >> 2) & 48);
    }
  }
  int scale[8];
  int minimum[8];
};

}  // namespace

// { uint8 scale and minimum nibbles[16]; uint8 q[64]; half scale; half minimum }. Byte j of each half of q holds the elements j, j + 32,
// j + 64, j + 96 of that half, two bits each.
void DequantizeQ2_K(const uint8_t* in, size_t blocks, float* out) {
  for (; blocks > 0; --blocks, in += 84, out += kSuperBlock) {
    const float super_scale = LoadHalf(in + 80);
    const float super_minimum = LoadHalf(in + 82);
    for (size_t sub = 0; sub < 16; ++sub) {
      const float scale = super_scale * static_cast<float>(in[sub] & 15);
      const float minimum = super_minimum * static_cast<float>(in[sub] >> 4);
      const uint8_t* q = in + 16 + sub / 8 * 32 + sub % 2 * 16;
      const size_t shift = sub % 8 / 2 * 2;
      for (size_t i = 0; i < 16; ++i) out[sub * 16 + i] = scale * static_cast<float>((q[i] >> shift) & 3) - minimum;
    }
  }
}

// { uint8 high bits[32]; uint8 q[64] as Q2_K; uint8 scales[12]; half scale }: 3-bit quanta from -4 (a high bit of 0 subtracts 4), 6-bit
// scales from -32: nibbles in bytes 0-7, their upper two bits in bytes 8-11.
void DequantizeQ3_K(const uint8_t* in, size_t blocks, float* out) {
  for (; blocks > 0; --blocks, in += 110, out += kSuperBlock) {
    const uint8_t* scales = in + 96;
    const float super_scale = LoadHalf(in + 108);
    for (size_t sub = 0; sub < 16; ++sub) {
      const int low = (scales[sub % 8] >> (sub / 8 * 4)) & 15;
      const int high = (scales[8 + sub % 4] >> (sub / 4 * 2)) & 3;
      const float scale = super_scale * static_cast<float>((low | high << 4) - 32);
      const uint8_t* high_bits = in + sub % 2 * 16;
      const uint8_t* q = in + 32 + sub / 8 * 32 + sub % 2 * 16;
      const size_t shift = sub % 8 / 2 * 2;
      for (size_t i = 0; i < 16; ++i) {
        const int quantum = ((q[i] >> shift) & 3) - ((high_bits[i] >> (sub / 2)) & 1 ? 0 : 4);
        out[sub * 16 + i] = scale * static_cast<float>(quantum);
      }
    }
  }
}

// { half scale; half minimum; uint8 scales[12]; uint8 q[128] }: each 32 bytes of q hold two sub-blocks, low nibbles first.
void DequantizeQ4_K(const uint8_t* in, size_t blocks, float* out) {
  for (; blocks > 0; --blocks, in += 144, out += kSuperBlock) {
    const float super_scale = LoadHalf(in);
    const float super_minimum = LoadHalf(in + 2);
    const Scales scales(in + 4);
    for (size_t sub = 0; sub < 8; ++sub) {
      const float scale = super_scale * static_cast<float>(scales.scale[sub]);
      const float minimum = super_minimum * static_cast<float>(scales.minimum[sub]);
      const uint8_t* q = in + 16 + sub / 2 * 32;
      const size_t shift = sub % 2 * 4;
      for (size_t i = 0; i < 32; ++i) out[sub * 32 + i] = scale * static_cast<float>((q[i] >> shift) & 15) - minimum;
    }
  }
}

// { half scale; half minimum; uint8 scales[12]; uint8 high bits[32]; uint8 q[128] }: Q4_K with a fifth bit; bit j of a high byte belongs to
// sub-block j.
void DequantizeQ5_K(const uint8_t* in, size_t blocks, float* out) {
  for (; blocks > 0; --blocks, in += 176, out += kSuperBlock) {
    const float super_scale = LoadHalf(in);
    const float super_minimum = LoadHalf(in + 2);
    const Scales scales(in + 4);
    const uint8_t* high_bits = in + 16;
    for (size_t sub = 0; sub < 8; ++sub) {
      const float scale = super_scale * static_cast<float>(scales.scale[sub]);
      const float minimum = super_minimum * static_cast<float>(scales.minimum[sub]);
      const uint8_t* q = in + 48 + sub / 2 * 32;
      const size_t shift = sub % 2 * 4;
      for (size_t i = 0; i < 32; ++i) {
        const int quantum = ((q[i] >> shift) & 15) | ((high_bits[i] >> sub) & 1) << 4;
        out[sub * 32 + i] = scale * static_cast<float>(quantum) - minimum;
      }
    }
  }
}

// { uint8 low[128]; uint8 high[64]; int8 scales[16]; half scale }: 6-bit quanta from -32. In each half, low byte j holds elements j and
// j + 64, high byte j two bits of the elements j, j + 32, j + 64, j + 96.
void DequantizeQ6_K(const uint8_t* in, size_t blocks, float* out) {
  for (; blocks > 0; --blocks, in += 210, out += kSuperBlock) {
    const float super_scale = LoadHalf(in + 208);
    for (size_t sub = 0; sub < 16; ++sub) {
      const float scale = super_scale * static_cast<float>(static_cast<int8_t>(in[192 + sub]));
      const size_t half = sub / 8;
      const size_t first = sub % 8 * 16;   // within the half
      const uint8_t* low = in + half * 64 + first % 64;
      const uint8_t* high = in + 128 + half * 32 + first % 32;
      const size_t low_shift = first / 64 * 4;
      const size_t high_shift = first / 32 * 2;
      for (size_t i = 0; i < 16; ++i) {
        const int quantum = (((low[i] >> low_shift) & 15) | ((high[i] >> high_shift) & 3) << 4) - 32;
        out[sub * 16 + i] = scale * static_cast<float>(quantum);
      }
    }
  }
}

}  // namespace membank
