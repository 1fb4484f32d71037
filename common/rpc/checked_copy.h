// Gathers a payload from the pieces it is received in and computes its CRC32C on the way. The checksum runs over what was written, in strides
// that are still in the cache but much longer than a received slice: over 8 KB pieces CRC32C is 2.5 times slower (measured). One thread.
#pragma once

#include <cstring>

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
  uint32_t crc() const { return crc_; }  // of the whole payload, once complete

  // False, and nothing is written, when the piece is longer than the room that is left.
  bool Append(absl::Span<const uint8_t> piece) {
    if (piece.size() > destination_.size() - received_) return false;
    std::memcpy(destination_.data() + received_, piece.data(), piece.size());
    received_ += piece.size();
    if (received_ - checked_ >= kStride || complete()) {
      crc_ = ExtendCrc32c(crc_, destination_.data() + checked_, received_ - checked_);
      checked_ = received_;
    }
    return true;
  }

 private:
  static constexpr size_t kStride = 128 << 10;

  absl::Span<uint8_t> destination_;
  size_t received_ = 0, checked_ = 0;
  uint32_t crc_ = 0;
};

}  // namespace membank
