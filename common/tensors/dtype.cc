#include "common/tensors/dtype.h"

#include <algorithm>
#include <array>
#include <string>

#include "common/base/status_macros.h"

namespace membank {
namespace {

struct DTypeInfo {
  DType dtype;
  std::string_view name;                      // as safetensors spells it
  size_t bytes;
  std::array<std::string_view, 2> aliases;    // as people spell it
};

constexpr DTypeInfo kDTypes[] = {
    {DType::kF32, "F32", 4, {"fp32", "float32"}},   {DType::kBF16, "BF16", 2, {"bf16", "bfloat16"}},
    {DType::kF16, "F16", 2, {"fp16", "float16"}},   {DType::kI64, "I64", 8, {"int64", "int64"}},
    {DType::kI32, "I32", 4, {"int32", "int32"}},    {DType::kU8, "U8", 1, {"uint8", "uint8"}},
};

// Half to float without branches (F. Giesen, "half_to_float_fast4"), so that loops over it vectorise.
inline float HalfToFloat(uint16_t half) {
  constexpr uint32_t kExponent = 0x7c00u << 13;
  const uint32_t magnitude = (half & 0x7fffu) << 13;
  const uint32_t exponent = magnitude & kExponent;
  const uint32_t rebased = magnitude + ((127u - 15u) << 23);
  const uint32_t infinite = rebased + ((128u - 16u) << 23);
  const float subnormal = std::bit_cast<float>(rebased + (1u << 23)) - std::bit_cast<float>(113u << 23);
  const uint32_t bits = exponent == kExponent ? infinite : exponent == 0 ? std::bit_cast<uint32_t>(subnormal) : rebased;
  return std::bit_cast<float>(bits | (half & 0x8000u) << 16);
}

inline uint16_t LoadU16(const uint8_t* in) {
  uint16_t value;
  std::memcpy(&value, in, sizeof(value));
  return value;
}

}  // namespace

size_t DTypeBytes(DType dtype) { return kDTypes[static_cast<size_t>(dtype)].bytes; }

std::string_view DTypeName(DType dtype) { return kDTypes[static_cast<size_t>(dtype)].name; }

absl::StatusOr<DType> ParseDType(std::string_view name) {
  for (const DTypeInfo& info : kDTypes) {
    if (name == info.name || std::find(info.aliases.begin(), info.aliases.end(), name) != info.aliases.end()) return info.dtype;
  }
  return InvalidArgument("unknown dtype '{}'; known are F32 (fp32, float32), BF16 (bf16, bfloat16), F16 (fp16, float16), I64 (int64), "
                         "I32 (int32), U8 (uint8)", name);
}

float F16ToFloat(uint16_t bits) { return HalfToFloat(bits); }

uint16_t FloatToF16(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const uint32_t sign = (bits >> 16) & 0x8000;
  const uint32_t magnitude = bits & 0x7fffffff;
  if (magnitude > 0x7f800000) return static_cast<uint16_t>(sign | 0x7e00);
  if (magnitude >= (127u + 16u) << 23) return static_cast<uint16_t>(sign | 0x7c00);
  if (magnitude < 113u << 23) {
    // The sum with 0.5 lets the float adder shift the mantissa to the half's subnormal position and round it to nearest even.
    const float shifted = std::bit_cast<float>(magnitude) + 0.5f;
    return static_cast<uint16_t>(sign | (std::bit_cast<uint32_t>(shifted) - std::bit_cast<uint32_t>(0.5f)));
  }
  const uint32_t odd = (magnitude >> 13) & 1;
  return static_cast<uint16_t>(sign | (magnitude - ((127u - 15u) << 23) + 0xfff + odd) >> 13);   // may carry into infinity: correct
}

absl::Status ConvertToFloats(DType dtype, const uint8_t* in, size_t count, float* out) {
  switch (dtype) {
    case DType::kF32:
      if (count > 0) std::memcpy(out, in, count * sizeof(float));
      return absl::OkStatus();
    case DType::kBF16:
      for (size_t i = 0; i < count; ++i) out[i] = BF16ToFloat(LoadU16(in + 2 * i));
      return absl::OkStatus();
    case DType::kF16:
      for (size_t i = 0; i < count; ++i) out[i] = HalfToFloat(LoadU16(in + 2 * i));
      return absl::OkStatus();
    default:
      return Unimplemented("{} elements cannot be converted to floats; F32, BF16 and F16 can", DTypeName(dtype));
  }
}

}  // namespace membank
