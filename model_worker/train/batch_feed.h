// The road from the corpus to the compute thread: while one update computes, the next one's sequences are read and its blocks fetched on
// a thread. Exact at staleness 0: a block that an unapplied update touches is fetched only after that update is applied; all others come
// early. At staleness s a block may lack the newest s updates. The blocks of the update after that are announced to the servers, which
// read them from disk meanwhile when the bank is larger than their memory. Owned by the trainer, called from its one thread.
#pragma once

#include <future>
#include <optional>

#include "common/base/thread_pool.h"
#include "model_worker/train/batch.h"
#include "model_worker/train/data_order.h"
#include "model_worker/train/options.h"
#include "model_worker/train/step_committer.h"

namespace membank {

struct ReadyBatch {
  TrainBatch batch;
  std::vector<BlockHandle> blocks;                  // of batch.blocks
  double data_seconds = 0, fetch_seconds = 0;       // work, most of it behind the compute thread
};

class BatchFeed {
 public:
  // Update u is step u + 1 of the run. `base_step` is the servers' head when the run began. Everything must outlive the feed.
  BatchFeed(const TrainOptions& options, const PackedCorpus* corpus, MemoryClient* client, BlockCache* cache, StepCommitter* committer,
            uint64_t base_step);

  // Starts on `update` in the background (or, without prefetch, remembers it for Take). Call it when the update before was taken.
  void Start(uint64_t update);
  // The update that was started, with all its blocks; waits for what it needs. The caller must hold no blocks of earlier updates.
  absl::StatusOr<ReadyBatch> Take();

 private:
  struct Preparation {
    ReadyBatch ready;
    std::vector<size_t> late;      // of batch.blocks: wait for an update that is not applied yet
    uint64_t late_step = 0;        // the newest such update
  };

  absl::StatusOr<TrainBatch> Read(uint64_t update);
  absl::StatusOr<Preparation> Prepare(uint64_t update);
  void Announce(uint64_t update);
  uint64_t RequiredStep(BlockId id, uint64_t server_step) const;

  const TrainOptions& options_;
  const BankSpec& spec_;
  const PackedCorpus* const corpus_;
  MemoryClient* const client_;
  BlockCache* const cache_;
  StepCommitter* const committer_;
  const uint64_t base_step_;
  // Used by the preparation that is in flight, else by the caller: never at once, as Take joins it and only Take and Start touch them.
  DataOrder order_;
  absl::flat_hash_map<BlockId, uint64_t> touched_;   // newest server step that trains the block
  uint64_t started_ = 0;
  std::future<absl::StatusOr<Preparation>> in_flight_;
  ThreadPool thread_{1};
};

}  // namespace membank
