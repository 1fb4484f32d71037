#include "common/tensors/ggml_types.h"

#include <algorithm>

#include "common/tensors/dtype.h"
#include "common/tensors/k_quants.h"

namespace membank {
namespace {

constexpr size_t kBlock = 32;   // elements of the 32-wide quantised blocks

template <DType dtype>
void Convert(const uint8_t* in, size_t blocks, float* out) {
  static_assert(dtype == DType::kF32 || dtype == DType::kF16 || dtype == DType::kBF16);
  (void)ConvertToFloats(dtype, in, blocks, out);   // cannot fail for these types
}

float LoadHalf(const uint8_t* in) {
  uint16_t bits;
  std::memcpy(&bits, in, sizeof(bits));
  return F16ToFloat(bits);
}

int FifthBit(const uint8_t* bits, size_t element) { return ((bits[element / 8] >> (element % 8)) & 1) << 4; }

// { half scale; int8 q[32] }
void DequantizeQ8_0(const uint8_t* in, size_t blocks, float* out) {
  for (; blocks > 0; --blocks, in += 34, out += kBlock) {
    const float scale = LoadHalf(in);
    const int8_t* q = reinterpret_cast<const int8_t*>(in + 2);
    for (size_t i = 0; i < kBlock; ++i) out[i] = scale * static_cast<float>(q[i]);
  }
}

// { half scale; uint8 q[16] }: the low nibbles are elements 0-15, the high ones 16-31; 8 means zero.
void DequantizeQ4_0(const uint8_t* in, size_t blocks, float* out) {
  for (; blocks > 0; --blocks, in += 18, out += kBlock) {
    const float scale = LoadHalf(in);
    const uint8_t* q = in + 2;
    for (size_t i = 0; i < kBlock / 2; ++i) {
      out[i] = scale * static_cast<float>((q[i] & 15) - 8);
      out[i + kBlock / 2] = scale * static_cast<float>((q[i] >> 4) - 8);
    }
  }
}

// { half scale; half minimum; uint8 q[16] }. scale * q is exact in float, so a fused multiply-add gives the same bits.
void DequantizeQ4_1(const uint8_t* in, size_t blocks, float* out) {
  for (; blocks > 0; --blocks, in += 20, out += kBlock) {
    const float scale = LoadHalf(in);
    const float minimum = LoadHalf(in + 2);
    const uint8_t* q = in + 4;
    for (size_t i = 0; i < kBlock / 2; ++i) {
      out[i] = scale * static_cast<float>(q[i] & 15) + minimum;
      out[i + kBlock / 2] = scale * static_cast<float>(q[i] >> 4) + minimum;
    }
  }
}

// { half scale; uint8 high bits[4]; uint8 q[16] }: Q4_0 with a fifth bit, bit i of the four bytes belongs to element i; 16 means zero.
void DequantizeQ5_0(const uint8_t* in, size_t blocks, float* out) {
  for (; blocks > 0; --blocks, in += 22, out += kBlock) {
    const float scale = LoadHalf(in);
    const uint8_t* q = in + 6;
    for (size_t i = 0; i < kBlock / 2; ++i) {
      out[i] = scale * static_cast<float>(((q[i] & 15) | FifthBit(in + 2, i)) - 16);
      out[i + kBlock / 2] = scale * static_cast<float>(((q[i] >> 4) | FifthBit(in + 2, i + kBlock / 2)) - 16);
    }
  }
}

// { half scale; half minimum; uint8 high bits[4]; uint8 q[16] }
void DequantizeQ5_1(const uint8_t* in, size_t blocks, float* out) {
  for (; blocks > 0; --blocks, in += 24, out += kBlock) {
    const float scale = LoadHalf(in);
    const float minimum = LoadHalf(in + 2);
    const uint8_t* q = in + 8;
    for (size_t i = 0; i < kBlock / 2; ++i) {
      out[i] = scale * static_cast<float>((q[i] & 15) | FifthBit(in + 4, i)) + minimum;
      out[i + kBlock / 2] = scale * static_cast<float>((q[i] >> 4) | FifthBit(in + 4, i + kBlock / 2)) + minimum;
    }
  }
}

// The sizes of all types are known so that a file that also holds others can be validated and its readable tensors read.
constexpr GgmlType kTypes[] = {
    {0, "F32", 1, 4, Convert<DType::kF32>},
    {1, "F16", 1, 2, Convert<DType::kF16>},
    {2, "Q4_0", 32, 18, DequantizeQ4_0},
    {3, "Q4_1", 32, 20, DequantizeQ4_1},
    {6, "Q5_0", 32, 22, DequantizeQ5_0},
    {7, "Q5_1", 32, 24, DequantizeQ5_1},
    {8, "Q8_0", 32, 34, DequantizeQ8_0},
    {9, "Q8_1", 32, 40, nullptr},
    {10, "Q2_K", 256, 84, DequantizeQ2_K},
    {11, "Q3_K", 256, 110, DequantizeQ3_K},
    {12, "Q4_K", 256, 144, DequantizeQ4_K},
    {13, "Q5_K", 256, 176, DequantizeQ5_K},
    {14, "Q6_K", 256, 210, DequantizeQ6_K},
    {15, "Q8_K", 256, 292, nullptr},
    {16, "IQ2_XXS", 256, 66, nullptr},
    {17, "IQ2_XS", 256, 74, nullptr},
    {18, "IQ3_XXS", 256, 98, nullptr},
    {19, "IQ1_S", 256, 50, nullptr},
    {20, "IQ4_NL", 32, 18, nullptr},
    {21, "IQ3_S", 256, 110, nullptr},
    {22, "IQ2_S", 256, 82, nullptr},
    {23, "IQ4_XS", 256, 136, nullptr},
    {24, "I8", 1, 1, nullptr},
    {25, "I16", 1, 2, nullptr},
    {26, "I32", 1, 4, nullptr},
    {27, "I64", 1, 8, nullptr},
    {28, "F64", 1, 8, nullptr},
    {29, "IQ1_M", 256, 56, nullptr},
    {30, "BF16", 1, 2, Convert<DType::kBF16>},
    {34, "TQ1_0", 256, 54, nullptr},
    {35, "TQ2_0", 256, 66, nullptr},
    {39, "MXFP4", 32, 17, nullptr},
};

}  // namespace

const GgmlType* FindGgmlType(uint32_t id) {
  const GgmlType* found = std::find_if(std::begin(kTypes), std::end(kTypes), [id](const GgmlType& type) { return type.id == id; });
  return found == std::end(kTypes) ? nullptr : found;
}

}  // namespace membank
