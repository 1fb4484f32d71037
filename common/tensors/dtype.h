// Element types of tensors in files and blocks, and conversions to and from float. Pure functions.
#pragma once

#include <bit>
#include <cstdint>
#include <cstring>
#include <string_view>

#include "absl/status/statusor.h"

namespace membank {

enum class DType : uint8_t { kF32 = 0, kBF16 = 1, kF16 = 2, kI64 = 3, kI32 = 4, kU8 = 5 };

size_t DTypeBytes(DType dtype);
std::string_view DTypeName(DType dtype);                       // "F32", "BF16", ... as safetensors spells them
absl::StatusOr<DType> ParseDType(std::string_view name);       // also "fp32", "float32", "bf16", "bfloat16", "fp16", "float16"

inline float BF16ToFloat(uint16_t bits) { return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16); }

// Round to nearest even; NaN stays NaN.
inline uint16_t FloatToBF16(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  if ((bits & 0x7fffffff) > 0x7f800000) return static_cast<uint16_t>((bits >> 16) | 0x40);
  return static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

float F16ToFloat(uint16_t bits);
uint16_t FloatToF16(float value);   // round to nearest even; NaN stays NaN

// `count` elements of F32, BF16 or F16 at `in` (any alignment) to floats. UNIMPLEMENTED for the integer types.
absl::Status ConvertToFloats(DType dtype, const uint8_t* in, size_t count, float* out);

}  // namespace membank
