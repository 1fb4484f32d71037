#include "memory_server/payload_cache.h"

namespace membank {

std::optional<CachedPayload> PayloadCache::Get(const Key& key) {
  absl::MutexLock lock(&mu_);
  const auto it = index_.find(key);
  if (it == index_.end()) return std::nullopt;
  entries_.splice(entries_.begin(), entries_, it->second);
  return it->second->second;
}

void PayloadCache::Put(const Key& key, CachedPayload payload) {
  const uint64_t size = payload.payload->size();
  if (size > max_bytes_) return;
  Entries evicted;  // freed after the lock
  absl::MutexLock lock(&mu_);
  if (index_.contains(key)) return;  // another thread made the same payload
  while (bytes_ + size > max_bytes_) {
    bytes_ -= entries_.back().second.payload->size();
    index_.erase(entries_.back().first);
    evicted.splice(evicted.begin(), entries_, std::prev(entries_.end()));
  }
  entries_.emplace_front(key, std::move(payload));
  index_.emplace(key, entries_.begin());
  bytes_ += size;
}

void PayloadCache::Clear() {
  Entries evicted;  // freed after the lock
  absl::MutexLock lock(&mu_);
  evicted.swap(entries_);
  index_.clear();
  bytes_ = 0;
}

uint64_t PayloadCache::bytes() const {
  absl::MutexLock lock(&mu_);
  return bytes_;
}

}  // namespace membank
