// Reads the fields of a serialised protobuf message without its .proto, for files whose format is one (SentencePiece's ModelProto). Every
// read is checked against what is left. Not thread-safe.
#pragma once

#include <cstdint>
#include <string_view>

#include "absl/status/statusor.h"

namespace membank {

struct ProtoField {
  uint32_t number = 0;
  uint32_t type = 0;         // of the wire: 0 varint, 1 eight bytes, 2 length-delimited, 5 four bytes
  uint64_t value = 0;        // of types 0, 1 and 5
  std::string_view bytes;    // of type 2
};

class ProtoReader {
 public:
  explicit ProtoReader(std::string_view message) : rest_(message) {}
  bool done() const { return rest_.empty(); }
  absl::StatusOr<ProtoField> Next();   // DATA_LOSS where the message ends inside a field or has a type that is none

 private:
  absl::StatusOr<uint64_t> Varint();
  absl::StatusOr<std::string_view> Take(uint64_t size);
  std::string_view rest_;
};

}  // namespace membank
