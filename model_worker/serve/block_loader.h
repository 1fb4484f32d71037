// Blocks for serving: loads them from the memory servers on its own threads, so that sequences whose blocks are there go on meanwhile; keeps
// them in the model's dtype, least recently used first out. One fetch per block however many sequences wait for it, and each block fails
// alone. A published bank version never changes, so a resident block costs nothing; of the live head the servers are asked each time, and an
// unchanged block costs a header. Blocks of several versions lie side by side while sequences of both run; those of an int8 version travel as
// int8 and become the model's dtype here. With an access watch, what was fetched before the access table changed, or is there when the
// watch's lease is over, is asked for again, too. A handle pins its block: its values never change, and it is not dropped. The upper levels of
// the version in use may be kept resident altogether: few blocks, which nearly every path goes through.
// Owned by the engine; any thread. Errors are the client's, with the block named.
#pragma once

#include <functional>
#include <list>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "common/base/thread_pool.h"
#include "model_worker/memory/access_watch.h"
#include "model_worker/memory/block_cache.h"

namespace membank {

struct BlockLoaderOptions {
  torch::Dtype dtype = torch::kBFloat16;  // of the values
  uint64_t capacity_bytes = 2ull << 30;   // unpinned blocks go beyond it
  uint32_t resident_levels = 0;           // blocks of levels 1 to this one stay, beside capacity_bytes (KeepResident)
  int threads = 4;                        // fetches at once
  absl::Duration timeout = absl::Seconds(30);
  const AccessWatch* access = nullptr;    // outlives the loader; null: resident blocks of a version are used for ever
};

class BlockLoader {
 public:
  using Done = std::function<void(absl::StatusOr<std::vector<BlockHandle>>)>;

  BlockLoader(MemoryClient* client, BlockLoaderOptions options);
  ~BlockLoader();

  // From now on it is this version whose resident_levels stay. Fetches them behind the caller's back, one after the other, so that sequences find
  // the other loader threads free; what cannot be had is logged and comes with the first sequence that needs it.
  void KeepResident(const std::string& bank_version) ABSL_LOCKS_EXCLUDED(mu_);

  // Calls `done` once, with one handle per id in order, all of one bank version (empty: the live head): on this thread when all are resident,
  // else from a loader thread. Ids are distinct. With an access watch the servers served each block at the epoch of this call or a later one.
  // When several blocks fail, PERMISSION_DENIED goes before other errors.
  void Load(const std::string& bank_version, const std::vector<BlockId>& ids, Done done) ABSL_LOCKS_EXCLUDED(mu_);

  std::vector<BlockId> ResidentBlocks() const ABSL_LOCKS_EXCLUDED(mu_);  // of any version, sorted
  uint64_t resident_bytes() const ABSL_LOCKS_EXCLUDED(mu_);

 private:
  using Key = std::pair<std::string, BlockId>;  // bank version, block
  struct Request {                        // one call of Load
    std::vector<BlockHandle> handles;
    size_t missing = 0;
    absl::Status status;
    Done done;
  };
  struct Waiter {
    std::shared_ptr<Request> request;
    size_t index;
    uint64_t access_epoch;                // of the call
  };
  struct Entry {
    BlockHandle block;                    // what is resident, if anything
    bool loading = false;
    uint64_t access_epoch = 0;            // at which the block was asked for
    std::vector<Waiter> waiters;
    std::list<Key>::iterator used;        // in recency_
  };

  void Fetch(const Key& key, BlockHandle current) ABSL_LOCKS_EXCLUDED(mu_);
  torch::Tensor ToValues(const BlockFetch& fetched, const torch::Tensor& payload) const;
  absl::StatusOr<BlockHandle> FetchOne(const Key& key, const BlockHandle& current) const;
  void KeepNext(const std::string& bank_version, std::vector<BlockId> left, uint64_t failed) ABSL_LOCKS_EXCLUDED(mu_);
  bool Stays(const Key& key) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    return key.second.level <= options_.resident_levels && key.first == kept_version_;
  }
  uint64_t AccessEpoch() const { return options_.access == nullptr ? 0 : options_.access->epoch(); }
  bool MayUse(const Entry& entry, const std::string& bank_version) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void Evict() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  MemoryClient* const client_;
  const BlockLoaderOptions options_;

  mutable absl::Mutex mu_;
  absl::flat_hash_map<Key, Entry> entries_ ABSL_GUARDED_BY(mu_);
  std::list<Key> recency_ ABSL_GUARDED_BY(mu_);  // most recent first
  uint64_t bytes_ ABSL_GUARDED_BY(mu_) = 0, kept_bytes_ ABSL_GUARDED_BY(mu_) = 0;  // of blocks that may be dropped, and of those that stay
  std::optional<std::string> kept_version_ ABSL_GUARDED_BY(mu_);
  bool stopping_ ABSL_GUARDED_BY(mu_) = false;

  ThreadPool pool_;  // last: its threads use everything above
};

}  // namespace membank
