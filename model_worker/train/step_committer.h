// Carries finished updates to the memory servers behind the compute thread: push, prepare (the servers' sum of squares), clip factor,
// apply; one update after the other, in order (design/house.md "Life of a gradient"). Ranks above 0 push and wait until rank 0 has applied. Owned by the trainer, which calls everything from
// its one thread; applied() may be read from any thread. The first error stops the work and is returned by every later call.
#pragma once

#include <chrono>
#include <deque>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "common/client/memory_client.h"

namespace membank {

struct StepUpdate {
  uint64_t step = 0;                        // the servers' step number
  std::vector<BlockGradient> gradients;     // views into `owner`
  std::shared_ptr<const void> owner;
  double anchor_sum_of_squares = 0;         // of a co-trained anchor's gradients: part of the global norm
  double learning_rate = 0, weight_decay = 0;
  std::string batch;                        // what was computed, for errors
  std::vector<double> sums;                 // this rank's part of numbers that are added over the ranks
};

struct StepOutcome {
  uint64_t step = 0;
  double gradient_norm = 0;                 // global, before clipping
  double scale = 1;                         // clip factor
  double push_seconds = 0, apply_seconds = 0;
  std::vector<double> sums;                 // over all ranks
};

struct CommitterOptions {
  std::string run_id;
  uint64_t epoch = 0;
  uint64_t head = 0;                        // the step that the servers have applied
  double clip = 0;                          // 0: never scale
  uint32_t rank = 0, world_size = 1;
  uint32_t in_flight = 1;                   // updates submitted but not applied, at most
  std::chrono::milliseconds rank_timeout{300000};
};

class StepCommitter {
 public:
  StepCommitter(MemoryClient* client, const CommitterOptions& options);
  ~StepCommitter();  // finishes the updates it has, if any
  StepCommitter(const StepCommitter&) = delete;
  StepCommitter& operator=(const StepCommitter&) = delete;

  // Waits until fewer than `in_flight` updates are on their way, then returns at once.
  absl::Status Submit(StepUpdate update) ABSL_LOCKS_EXCLUDED(mu_);
  // Rank 0. Waits until the global norm of `step`, the last one submitted, is known.
  absl::StatusOr<StepOutcome> WaitPrepared(uint64_t step) ABSL_LOCKS_EXCLUDED(mu_);
  absl::Status WaitApplied(uint64_t step) ABSL_LOCKS_EXCLUDED(mu_);
  uint64_t applied() const ABSL_LOCKS_EXCLUDED(mu_);
  // Outcomes of the updates applied since the last call, in order.
  std::vector<StepOutcome> TakeOutcomes() ABSL_LOCKS_EXCLUDED(mu_);

 private:
  void Run() ABSL_LOCKS_EXCLUDED(mu_);
  absl::Status Commit(const StepUpdate& update) ABSL_LOCKS_EXCLUDED(mu_);
  absl::Status PrepareAndApply(const StepId& id, const StepUpdate& update, StepOutcome* outcome) ABSL_LOCKS_EXCLUDED(mu_);

  MemoryClient* const client_;
  const CommitterOptions options_;

  mutable absl::Mutex mu_;
  std::deque<StepUpdate> pending_ ABSL_GUARDED_BY(mu_);
  StepOutcome prepared_ ABSL_GUARDED_BY(mu_);          // of the newest update whose norm is known
  std::vector<StepOutcome> outcomes_ ABSL_GUARDED_BY(mu_);
  uint64_t submitted_ ABSL_GUARDED_BY(mu_);
  uint64_t applied_ ABSL_GUARDED_BY(mu_);
  absl::Status status_ ABSL_GUARDED_BY(mu_);
  bool stopping_ ABSL_GUARDED_BY(mu_) = false;

  std::thread thread_;
};

}  // namespace membank
