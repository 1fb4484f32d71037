// An immutable-once-shared, 64-byte aligned byte buffer for block payloads. Writers fill a unique Buffer; `Share` freezes it, and
// from then on any number of threads (a gRPC write, a checkpoint) may hold it while a newer version replaces it in the shard.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include "absl/types/span.h"

namespace membank {

class Buffer {
 public:
  Buffer() = default;
  explicit Buffer(size_t size);    // contents are not initialised
  static Buffer Mapped(size_t size);  // pages of its own, which go back to the kernel at once when it dies
  Buffer(Buffer&&) noexcept = default;
  Buffer& operator=(Buffer&&) noexcept = default;

  uint8_t* data() { return data_.get(); }
  const uint8_t* data() const { return data_.get(); }
  size_t size() const { return size_; }
  absl::Span<uint8_t> span() { return {data_.get(), size_}; }
  absl::Span<const uint8_t> span() const { return {data_.get(), size_}; }

 private:
  struct Free {
    size_t mapped_bytes;  // 0: from malloc
    void operator()(uint8_t* p) const;
  };
  std::unique_ptr<uint8_t[], Free> data_;
  size_t size_ = 0;
};

using SharedBuffer = std::shared_ptr<const Buffer>;

inline SharedBuffer Share(Buffer buffer) { return std::make_shared<const Buffer>(std::move(buffer)); }

}  // namespace membank
