// The blocks that lie on this worker: a least-recently-used cache in front of the memory servers, as tensors of the model's dtype.
// Of the live head every Get asks the servers, but a block whose version has not changed costs a header and no bytes; of a published bank
// version, which never changes, a resident block costs nothing. Owned by the trainer or the scheduler; Get may be called from any thread.
// A handle pins its block: the values never change while it is held. Errors are the client's and leave the other blocks resident.
#pragma once

#include <torch/torch.h>

#include <list>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/types/span.h"
#include "common/client/memory_client.h"

namespace membank {

struct ResidentBlock {
  BlockId id;
  uint64_t version = 0;
  bool blocked = false;  // the servers do not serve it: zeros
  torch::Tensor values;  // flat [BlockElements(level)], layout of common/bank/block_layout.h
};
using BlockHandle = std::shared_ptr<const ResidentBlock>;

struct BlockCacheOptions {
  std::string bank_version;              // empty: the live head
  torch::Dtype dtype = torch::kBFloat16; // of `values`; payloads of another dtype are converted on arrival
  uint64_t capacity_bytes = 2ull << 30;  // pinned blocks may exceed it
  std::chrono::milliseconds timeout{60000};
};

class BlockCache {
 public:
  BlockCache(MemoryClient* client, BlockCacheOptions options) : client_(client), options_(std::move(options)) {}

  // One handle per id, in order; ids must be distinct. `min_step`: the live head must have applied that step (waits within the timeout).
  absl::StatusOr<std::vector<BlockHandle>> Get(absl::Span<const BlockId> ids, uint64_t min_step = 0) ABSL_LOCKS_EXCLUDED(mu_);

  uint64_t resident_bytes() const ABSL_LOCKS_EXCLUDED(mu_);

 private:
  struct Entry {
    std::shared_ptr<ResidentBlock> block;
    std::list<BlockId>::iterator used;  // in recency_
  };
  struct Request;

  std::shared_ptr<ResidentBlock> Take(BlockId id) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void Insert(std::shared_ptr<ResidentBlock> block) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void Evict() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void Prepare(Request& request) const;
  absl::Status Fetch(std::vector<Request>& requests, uint64_t min_step) const;

  MemoryClient* const client_;
  const BlockCacheOptions options_;

  mutable absl::Mutex mu_;
  absl::flat_hash_map<BlockId, Entry> entries_ ABSL_GUARDED_BY(mu_);
  std::list<BlockId> recency_ ABSL_GUARDED_BY(mu_);  // most recent first
  uint64_t bytes_ ABSL_GUARDED_BY(mu_) = 0;
};

// The tensor type of a payload: F32 or BF16.
torch::Dtype TorchDtype(DType dtype);

}  // namespace membank
