// How a block lies in the stores. Keys: 'b', level, cluster (big-endian, so that scans ascend). Values start with a header, little-endian:
//   weights store   magic "MBW1" u32 | payload crc32c u32 | version u64 | payload
//   state store     magic "MBS2" u32 | crc32c of all arrays u32 | version u64 | AdamW steps u64 | bytes of weights, m, v u64 each
//                   | weights fp32 | m fp32 | v fp32        which of them there are: block_update.h
//   state store     key "marks": the cut's marks as JSON
// Pure functions; DATA_LOSS says what is wrong, the caller adds block and file.
#pragma once

#include <array>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "common/bank/block.h"
#include "common/base/buffer.h"

namespace membank {

inline constexpr std::string_view kBlockKeyPrefix = "b";
inline constexpr std::string_view kMarksKey = "marks";

std::string BlockKey(BlockId id);
absl::StatusOr<BlockId> ParseBlockKey(std::string_view key);

struct WeightsRecord {
  uint64_t version = 0;
  uint32_t crc32c = 0;
  absl::Span<const uint8_t> payload;
};
std::string EncodeWeightsHeader(const WeightsRecord& record);
absl::StatusOr<WeightsRecord> DecodeWeightsHeader(absl::Span<const uint8_t> value);  // nothing else is checked
absl::StatusOr<WeightsRecord> DecodeWeights(absl::Span<const uint8_t> value, uint64_t expected_bytes);  // the checksum holds

struct StateRecord {
  uint64_t version = 0;
  uint64_t adam_steps = 0;
  absl::Span<const uint8_t> weights, m, v;
};
std::string EncodeStateHeader(const StateRecord& record);
absl::StatusOr<StateRecord> DecodeState(absl::Span<const uint8_t> value);  // the checksum holds

}  // namespace membank
