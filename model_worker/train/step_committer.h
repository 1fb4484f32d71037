// Carries finished updates to the memory servers behind the compute thread: push, prepare (the servers' sum of squares), clip factor,
// apply; one update after the other, in order (design/house.md "Life of a gradient"). Owned by the trainer, which calls everything from
// its one thread; applied() may be read from any thread. The first error stops the work and is returned by every later call.
#pragma once

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
};

struct StepOutcome {
  uint64_t step = 0;
  double gradient_norm = 0;                 // global, before clipping
  double scale = 1;                         // clip factor
  double push_seconds = 0, apply_seconds = 0;
};

class StepCommitter {
 public:
  // `head`: the step the servers have applied. `clip` 0: never scale.
  StepCommitter(MemoryClient* client, std::string run_id, uint64_t epoch, uint64_t head, double clip);
  ~StepCommitter();  // finishes the update it has, if any
  StepCommitter(const StepCommitter&) = delete;
  StepCommitter& operator=(const StepCommitter&) = delete;

  // Waits until the update before is applied, then returns at once.
  absl::Status Submit(StepUpdate update) ABSL_LOCKS_EXCLUDED(mu_);
  // Waits until the global norm of `step`, the last one submitted, is known.
  absl::StatusOr<StepOutcome> WaitPrepared(uint64_t step) ABSL_LOCKS_EXCLUDED(mu_);
  absl::Status WaitApplied(uint64_t step) ABSL_LOCKS_EXCLUDED(mu_);
  uint64_t applied() const ABSL_LOCKS_EXCLUDED(mu_);
  // Outcomes of the updates applied since the last call, in order.
  std::vector<StepOutcome> TakeOutcomes() ABSL_LOCKS_EXCLUDED(mu_);

 private:
  void Run() ABSL_LOCKS_EXCLUDED(mu_);
  absl::Status Commit(const StepUpdate& update) ABSL_LOCKS_EXCLUDED(mu_);

  MemoryClient* const client_;
  const std::string run_id_;
  const uint64_t epoch_;
  const double clip_;

  mutable absl::Mutex mu_;
  std::unique_ptr<StepUpdate> pending_ ABSL_GUARDED_BY(mu_);
  StepOutcome prepared_ ABSL_GUARDED_BY(mu_);          // of the newest update whose norm is known
  std::vector<StepOutcome> outcomes_ ABSL_GUARDED_BY(mu_);
  uint64_t submitted_ ABSL_GUARDED_BY(mu_);
  uint64_t applied_ ABSL_GUARDED_BY(mu_);
  absl::Status status_ ABSL_GUARDED_BY(mu_);
  bool stopping_ ABSL_GUARDED_BY(mu_) = false;

  std::thread thread_;
};

}  // namespace membank
