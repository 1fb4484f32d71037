// A bounded cache of immutable payloads: generated blocks of the head, and blocks of published versions. Least recently used goes first; a
// payload larger than the bound is not kept. Holders of a payload keep it alive after it was evicted. Thread-safe.
#pragma once

#include <cstdint>
#include <list>
#include <optional>
#include <string>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/synchronization/mutex.h"
#include "common/bank/block.h"
#include "common/base/buffer.h"

namespace membank {

struct CachedPayload {
  uint64_t version = 0;
  uint32_t crc32c = 0;
  SharedBuffer payload;
};

class PayloadCache {
 public:
  using Key = std::pair<std::string, BlockId>;  // bank version (of generated blocks: their form), block

  explicit PayloadCache(uint64_t max_bytes) : max_bytes_(max_bytes) {}
  std::optional<CachedPayload> Get(const Key& key) ABSL_LOCKS_EXCLUDED(mu_);
  void Put(const Key& key, CachedPayload payload) ABSL_LOCKS_EXCLUDED(mu_);
  void Clear() ABSL_LOCKS_EXCLUDED(mu_);
  uint64_t bytes() const ABSL_LOCKS_EXCLUDED(mu_);

 private:
  using Entries = std::list<std::pair<Key, CachedPayload>>;  // most recently used first

  const uint64_t max_bytes_;
  mutable absl::Mutex mu_;
  Entries entries_ ABSL_GUARDED_BY(mu_);
  absl::flat_hash_map<Key, Entries::iterator> index_ ABSL_GUARDED_BY(mu_);
  uint64_t bytes_ ABSL_GUARDED_BY(mu_) = 0;
};

}  // namespace membank
