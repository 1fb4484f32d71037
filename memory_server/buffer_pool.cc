#include "memory_server/buffer_pool.h"

#include <utility>

namespace membank {
namespace {

constexpr size_t kMapBytes = 1 << 20;

}  // namespace

Buffer BufferPool::Acquire(size_t size) {
  {
    absl::MutexLock lock(&mu_);
    const auto it = idle_.find(size);
    if (it != idle_.end() && !it->second.empty()) {
      Buffer buffer = std::move(it->second.back());
      it->second.pop_back();
      idle_bytes_ -= size;
      return buffer;
    }
  }
  return size >= kMapBytes ? Buffer::Mapped(size) : Buffer(size);
}

SharedBuffer BufferPool::Share(Buffer buffer) {
  return SharedBuffer(new Buffer(std::move(buffer)), [pool = shared_from_this()](Buffer* shared) {
    pool->Release(std::move(*shared));
    delete shared;
  });
}

void BufferPool::Release(Buffer buffer) {
  absl::MutexLock lock(&mu_);
  if (idle_bytes_ + buffer.size() > max_idle_bytes_) return;  // freed after the lock
  idle_bytes_ += buffer.size();
  idle_[buffer.size()].push_back(std::move(buffer));
}

void BufferPool::Forget() {
  absl::flat_hash_map<size_t, std::vector<Buffer>> idle;  // freed after the lock
  absl::MutexLock lock(&mu_);
  idle.swap(idle_);
  idle_bytes_ = 0;
}

uint64_t BufferPool::idle_bytes() const {
  absl::MutexLock lock(&mu_);
  return idle_bytes_;
}

}  // namespace membank
