// The forms of a block's payload. The live head and its checkpoints have the bank's dtype; a published version may be stored and served as int8, a
// quarter of fp32 and half of bf16. Both are layer-major and little-endian, so that a layer is one contiguous range:
//   kBank    of each layer the elements (block_layout.h), of BankSpec::dtype
//   kI8Rows  of each layer one fp32 scale for each row of ShapeOf, then one int8 for each element; an element is its int8 times its row's scale.
//            A row's largest element is +-127, so what is read is off by half a scale at most; rows of zeros, and those with nothing above
//            4e-37, are zeros.
// Pure functions with the same bits on every machine.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "common/bank/bank_spec.h"

namespace membank {

enum class PayloadType : uint8_t { kBank = 0, kI8Rows = 1 };

// A published version of a bank.
struct BankVersion {
  std::string name;                        // empty: the live head
  PayloadType payload = PayloadType::kBank;

  bool operator==(const BankVersion&) const = default;
};

uint64_t PayloadBytes(const BankSpec& spec, uint32_t level, PayloadType type);
inline uint64_t LayerBytes(const BankSpec& spec, uint32_t level, PayloadType type) { return PayloadBytes(spec, level, type) / spec.block_layers(); }

// Else a bank is not published as int8, so that a buffer for one form holds the other.
bool Int8IsSmaller(const BankSpec& spec);

std::string_view PayloadTypeName(const BankSpec& spec, PayloadType type);  // "BF16", "F32", "I8_ROWS"

// From kBank to kI8Rows, both of their whole sizes. FAILED_PRECONDITION names layer and row of NaN or infinity; `out` is then undefined.
absl::Status QuantisePayload(const BankSpec& spec, uint32_t level, absl::Span<const uint8_t> payload, absl::Span<uint8_t> out);
// From kI8Rows to floats, BlockElements of them.
void DequantisePayload(const BankSpec& spec, uint32_t level, absl::Span<const uint8_t> payload, absl::Span<float> values);

}  // namespace membank
