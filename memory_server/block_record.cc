#include "memory_server/block_record.h"

#include <cstring>

#include "common/base/crc32c.h"
#include "common/base/status_macros.h"

namespace membank {
namespace {

constexpr uint32_t kWeightsMagic = 0x3157424d, kStateMagic = 0x3253424d;  // "MBW1", "MBS2"

struct WeightsHeader {
  uint32_t magic, crc32c;
  uint64_t version;
};
struct StateHeader {
  uint32_t magic, crc32c;
  uint64_t version, adam_steps, weights_bytes, m_bytes, v_bytes;
};
static_assert(sizeof(WeightsHeader) == 16 && sizeof(StateHeader) == 48, "no padding: the structs are the file format");

template <typename Header>
std::string ToBytes(const Header& header) {
  return std::string(reinterpret_cast<const char*>(&header), sizeof(header));
}

template <typename Header>
absl::StatusOr<Header> TakeHeader(absl::Span<const uint8_t>* value, uint32_t magic) {
  Header header;
  if (value->size() < sizeof(header)) return DataLoss("the record has {} bytes, fewer than its header", value->size());
  std::memcpy(&header, value->data(), sizeof(header));
  if (header.magic != magic) return DataLoss("the record's magic is {:#x}, must be {:#x}", header.magic, magic);
  value->remove_prefix(sizeof(header));
  return header;
}

absl::Status CheckCrc(uint32_t stored, uint32_t computed) {
  return stored == computed ? absl::OkStatus() : DataLoss("its CRC32C is {:08x}, {:08x} was stored with it", computed, stored);
}

uint32_t CrcOf(const StateRecord& record) {
  uint32_t crc = Crc32c(record.weights.data(), record.weights.size());
  crc = ExtendCrc32c(crc, record.m.data(), record.m.size());
  return ExtendCrc32c(crc, record.v.data(), record.v.size());
}

}  // namespace

std::string BlockKey(BlockId id) {
  std::string key(kBlockKeyPrefix);
  for (uint32_t number : {id.level, id.cluster})
    for (int shift = 24; shift >= 0; shift -= 8) key += static_cast<char>(number >> shift);
  return key;
}

absl::StatusOr<BlockId> ParseBlockKey(std::string_view key) {
  if (key.size() != 9 || !key.starts_with(kBlockKeyPrefix)) return DataLoss("a key of {} bytes is no block key", key.size());
  BlockId id;
  for (int i = 0; i < 4; ++i) id.level = id.level << 8 | static_cast<uint8_t>(key[1 + i]);
  for (int i = 0; i < 4; ++i) id.cluster = id.cluster << 8 | static_cast<uint8_t>(key[5 + i]);
  return id;
}

std::string EncodeWeightsHeader(const WeightsRecord& record) {
  return ToBytes(WeightsHeader{kWeightsMagic, record.crc32c, record.version});
}

absl::StatusOr<WeightsRecord> DecodeWeightsHeader(absl::Span<const uint8_t> value) {
  ASSIGN_OR_RETURN(const WeightsHeader header, TakeHeader<WeightsHeader>(&value, kWeightsMagic));
  return WeightsRecord{header.version, header.crc32c, value};
}

absl::StatusOr<WeightsRecord> DecodeWeights(absl::Span<const uint8_t> value, uint64_t expected_bytes) {
  ASSIGN_OR_RETURN(const WeightsRecord record, DecodeWeightsHeader(value));
  const absl::Span<const uint8_t> payload = record.payload;
  if (payload.size() != expected_bytes) return DataLoss("its payload has {} bytes, must have {}", payload.size(), expected_bytes);
  RETURN_IF_ERROR(CheckCrc(record.crc32c, Crc32c(payload.data(), payload.size())));
  return record;
}

std::string EncodeStateHeader(const StateRecord& record) {
  return ToBytes(StateHeader{kStateMagic, CrcOf(record), record.version, record.adam_steps, record.weights.size(), record.m.size(),
                             record.v.size()});
}

absl::StatusOr<StateRecord> DecodeState(absl::Span<const uint8_t> value) {
  ASSIGN_OR_RETURN(const StateHeader header, TakeHeader<StateHeader>(&value, kStateMagic));
  const bool sizes_fit = header.weights_bytes <= value.size() && header.m_bytes <= value.size() && header.v_bytes <= value.size() &&
                         header.weights_bytes + header.m_bytes + header.v_bytes == value.size();
  if (!sizes_fit)
    return DataLoss("its state has {} bytes, its header says {} + {} + {}", value.size(), header.weights_bytes, header.m_bytes, header.v_bytes);
  StateRecord record{header.version, header.adam_steps};
  record.weights = value.subspan(0, header.weights_bytes);
  record.m = value.subspan(header.weights_bytes, header.m_bytes);
  record.v = value.subspan(header.weights_bytes + header.m_bytes);
  RETURN_IF_ERROR(CheckCrc(header.crc32c, CrcOf(record)));
  return record;
}

}  // namespace membank
