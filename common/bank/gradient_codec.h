// How gradients of blocks travel. Per element: F32 or BF16. Per row: I8_ROWS, one fp32 scale for each row of the block (block_layout.h) and
// then one int8 for each element, row-major, little-endian; an element is its int8 times its row's scale, and a row's largest element is
// +-127. Half the bytes of BF16. What rounding drops is the caller's to keep and to add next time (error feedback). Pure functions.
#pragma once

#include <cstdint>
#include <string_view>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "common/bank/bank_spec.h"
#include "common/bank/block_layout.h"
#include "common/tensors/dtype.h"

namespace membank {

// Gradients alone have it, so dtype.h does not know it.
inline constexpr DType kI8Rows = DType{6};

inline bool IsGradientDType(DType dtype) { return dtype == DType::kF32 || dtype == DType::kBF16 || dtype == kI8Rows; }

// Bytes of a gradient of `shape`.
inline uint64_t GradientBytes(DType dtype, BlockShape shape) {
  return dtype == kI8Rows ? shape.elements() + shape.rows * sizeof(float) : shape.elements() * DTypeBytes(dtype);
}

std::string_view GradientDTypeName(DType dtype);                            // as DTypeName, and "I8_ROWS"
absl::StatusOr<DType> ParseGradientDType(std::string_view name);            // F32 and BF16 as ParseDType, I8_ROWS, int8

// Writes the I8_ROWS form of `values` to `out`, GradientBytes long, and leaves in `values` what was lost. A row that holds NaN or infinity
// gets a scale that is not finite, which the servers refuse.
void EncodeInt8Rows(BlockShape shape, absl::Span<float> values, absl::Span<uint8_t> out);

}  // namespace membank
