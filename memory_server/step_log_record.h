// Records of the step log as bytes (step_log.h has the format) and as values. Pure functions; DATA_LOSS says what is wrong, the caller adds
// the file.
#pragma once

#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "memory_server/step_log.h"
#include "nlohmann/json.hpp"

namespace membank {

inline constexpr size_t kLogHeaderBytes = 32, kLogAlignment = 8;

struct LogRecord {
  nlohmann::json json;
  absl::Span<const uint8_t> data;
  uint64_t bytes = 0;  // with header and padding
};

// Header and JSON; the caller writes `data_bytes` of data and then zeros up to a multiple of kLogAlignment.
std::string EncodeLogRecord(const std::string& json, uint64_t data_bytes, uint32_t data_crc);
uint64_t LogRecordBytes(uint64_t json_bytes, uint64_t data_bytes);

// The whole and undamaged record at the front of `bytes`, if there is one.
std::optional<LogRecord> DecodeLogRecord(absl::Span<const uint8_t> bytes);
// What the first whole and undamaged record at or after `begin` says ("step 7") that speaks of `min_step` or a later one, or of slots that became
// this server's, which is written when all before is synced: behind damage, it tells damage from a torn tail.
std::optional<std::string> FindProof(absl::Span<const uint8_t> bytes, size_t begin, uint64_t min_step);

std::string SegmentJson(const std::string& spec_hash, const LogBase& base, const SlotSet& slots, bool continues);
std::string GradientsJson(const RunSettings& run, uint64_t step, const RankGradients& gradients);
std::string ApplyJson(uint64_t step, const ApplyParameters& parameters);
std::string ImageJson(BlockId id, uint64_t weights_bytes, uint64_t state_bytes);
std::string TakenJson(const SlotsTaken& taken);
std::string OwnedJson(const SlotSet& slots);

struct SegmentHeader {
  std::string spec_hash;
  LogBase base;
  SlotSet slots;
  bool continues = false;
};
absl::StatusOr<SegmentHeader> DecodeSegment(const LogRecord& record);
absl::StatusOr<LoggedStep> DecodeGradients(const LogRecord& record);  // copies the gradients; parameters are not set
absl::StatusOr<LoggedImage> DecodeLoggedImage(const LogRecord& record);     // borrows the record's data
absl::StatusOr<SlotsTaken> DecodeTaken(const LogRecord& record);
absl::StatusOr<SlotSet> DecodeOwned(const LogRecord& record);
absl::Status DecodeApply(const LogRecord& record, uint64_t* step, ApplyParameters* parameters);

}  // namespace membank
