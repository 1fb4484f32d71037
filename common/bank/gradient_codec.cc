#include "common/bank/gradient_codec.h"

#include <algorithm>
#include <bit>
#include <cassert>
#include <cstring>

#include "common/base/status_macros.h"

namespace membank {
namespace {

// The largest magnitude as bits, so that NaN beats infinity beats everything.
float LargestMagnitude(const float* values, uint64_t count) {
  uint32_t largest = 0;
  for (uint64_t i = 0; i < count; ++i) largest = std::max(largest, std::bit_cast<uint32_t>(values[i]) & 0x7fffffff);
  return std::bit_cast<float>(largest);
}

}  // namespace

std::string_view GradientDTypeName(DType dtype) { return dtype == kI8Rows ? "I8_ROWS" : DTypeName(dtype); }

absl::StatusOr<DType> ParseGradientDType(std::string_view name) {
  if (name == "int8" || name == "I8_ROWS") return kI8Rows;
  const absl::StatusOr<DType> dtype = ParseDType(name);
  if (dtype.ok() && IsGradientDType(*dtype)) return dtype;
  return InvalidArgument("gradients cannot be '{}'; allowed: fp32 (F32), bf16 (BF16), int8 (I8_ROWS)", name);
}

void EncodeInt8Rows(BlockShape shape, absl::Span<float> values, absl::Span<uint8_t> out) {
  assert(values.size() == shape.elements() && out.size() == GradientBytes(kI8Rows, shape));
  int8_t* const quantised = reinterpret_cast<int8_t*>(out.data()) + shape.rows * sizeof(float);
  for (uint64_t r = 0; r < shape.rows; ++r) {
    float* __restrict row = values.data() + r * shape.row;
    int8_t* __restrict q = quantised + r * shape.row;
    const float largest = LargestMagnitude(row, shape.row);
    const float scale = largest / 127.0f;
    const bool usable = scale > 0 && largest <= 3.4028235e38f;
    const float inverse = usable ? 127.0f / largest : 0.0f;
    std::memcpy(out.data() + r * sizeof(float), &scale, sizeof(scale));
    if (!usable || inverse > 3.4028235e38f) {  // zeros, numbers too small for a scale, or a scale that the servers refuse
      std::fill_n(q, shape.row, int8_t{0});
      continue;
    }
    constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding and subtracting it rounds to the nearest integer
    for (uint64_t i = 0; i < shape.row; ++i) {
      const float nearest = std::min(127.0f, std::max(-127.0f, (row[i] * inverse + kRound) - kRound));
      q[i] = static_cast<int8_t>(static_cast<int32_t>(nearest));
      row[i] -= nearest * scale;
    }
  }
}

}  // namespace membank
