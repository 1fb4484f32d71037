// Recycles the arrays of blocks: freed large buffers go back to the kernel and fault in again at 2 us per page, several times the cost of the
// copy (research/hot-path.md). Every step writes each touched block anew, so its old buffer soon serves the next block of that size. Large
// ones are mapped, so that what is not kept here leaves the process: malloc's arenas would keep it, in pieces. Thread-safe.
#pragma once

#include <memory>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/synchronization/mutex.h"
#include "common/base/buffer.h"

namespace membank {

class BufferPool : public std::enable_shared_from_this<BufferPool> {
 public:
  // At most `idle_bytes` are kept for reuse.
  static std::shared_ptr<BufferPool> Create(uint64_t idle_bytes) { return std::shared_ptr<BufferPool>(new BufferPool(idle_bytes)); }

  Buffer Acquire(size_t size) ABSL_LOCKS_EXCLUDED(mu_);  // contents are not initialised
  // Freezes `buffer`; it comes back to the pool when the last holder lets go, even after the pool's owner is gone.
  SharedBuffer Share(Buffer buffer);
  void Release(Buffer buffer) ABSL_LOCKS_EXCLUDED(mu_);
  void Forget() ABSL_LOCKS_EXCLUDED(mu_);  // frees what is kept for reuse, with its old contents
  uint64_t idle_bytes() const ABSL_LOCKS_EXCLUDED(mu_);

 private:
  explicit BufferPool(uint64_t idle_bytes) : max_idle_bytes_(idle_bytes) {}

  const uint64_t max_idle_bytes_;
  mutable absl::Mutex mu_;
  absl::flat_hash_map<size_t, std::vector<Buffer>> idle_ ABSL_GUARDED_BY(mu_);
  uint64_t idle_bytes_ ABSL_GUARDED_BY(mu_) = 0;
};

}  // namespace membank
