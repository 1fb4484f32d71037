#include "common/text/proto_reader.h"

#include "common/base/status_macros.h"

namespace membank {

absl::StatusOr<uint64_t> ProtoReader::Varint() {
  uint64_t value = 0;
  for (int shift = 0; shift < 64 && !rest_.empty(); shift += 7) {
    const uint8_t byte = static_cast<uint8_t>(rest_[0]);
    rest_.remove_prefix(1);
    value |= static_cast<uint64_t>(byte & 0x7f) << shift;
    if (byte < 0x80) return value;
  }
  return DataLoss("a number is cut off");
}

absl::StatusOr<std::string_view> ProtoReader::Take(uint64_t size) {
  if (size > rest_.size()) return DataLoss("a field of {} bytes is cut off after {}", size, rest_.size());
  const std::string_view taken = rest_.substr(0, size);
  rest_.remove_prefix(size);
  return taken;
}

absl::StatusOr<ProtoField> ProtoReader::Next() {
  ProtoField field;
  ASSIGN_OR_RETURN(const uint64_t tag, Varint());
  field.number = static_cast<uint32_t>(tag >> 3);
  field.type = tag & 7;
  if (field.type == 0) {
    ASSIGN_OR_RETURN(field.value, Varint());
  } else if (field.type == 2) {
    ASSIGN_OR_RETURN(const uint64_t size, Varint());
    ASSIGN_OR_RETURN(field.bytes, Take(size));
  } else if (field.type == 1 || field.type == 5) {
    ASSIGN_OR_RETURN(const std::string_view bytes, Take(field.type == 1 ? 8 : 4));
    for (size_t i = 0; i < bytes.size(); ++i) field.value |= static_cast<uint64_t>(static_cast<uint8_t>(bytes[i])) << (8 * i);
  } else {
    return DataLoss("field {} has the wire type {}, which is none", field.number, field.type);
  }
  return field;
}

}  // namespace membank
