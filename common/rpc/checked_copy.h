// Gathers a payload from the pieces it is received in and computes its CRC32C in the same pass. One thread.
#pragma once

#include "absl/types/span.h"
#include "common/base/crc32c.h"

namespace membank {

class CheckedCopy {
 public:
  CheckedCopy() = default;
  explicit CheckedCopy(absl::Span<uint8_t> destination) : destination_(destination) {}

  size_t size() const { return destination_.size(); }
  size_t received() const { return received_; }
  bool complete() const { return received_ == destination_.size(); }
  uint32_t crc() const { return crc_; }  // of what was received

  // False, and nothing is written, when the piece is longer than the room that is left.
  bool Append(absl::Span<const uint8_t> piece) {
    if (piece.size() > destination_.size() - received_) return false;
    crc_ = CopyAndExtendCrc32c(crc_, destination_.data() + received_, piece.data(), piece.size());
    received_ += piece.size();
    return true;
  }

 private:
  absl::Span<uint8_t> destination_;
  size_t received_ = 0;
  uint32_t crc_ = 0;
};

}  // namespace membank
