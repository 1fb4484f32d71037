// Trains a bank, its anchor, or both: the whole of `membank train` behind one call (design/house.md "Life of a gradient"). No Torch in this header.
#pragma once

#include <atomic>
#include <cstdint>
#include <string>

#include "absl/status/statusor.h"
#include "common/client/memory_client.h"
#include "model_worker/train/options.h"
#include "nlohmann/json_fwd.hpp"

namespace membank {

struct TrainSummary {
  std::string run_directory, run_id, checkpoint;  // the newest checkpoint's id: what `membank bank publish` takes
  uint64_t steps = 0, steps_done = 0, resumed_from = 0;
  double loss = 0, loss_generic = -1;             // of the last step run now; -1: no generic memory in it
  double seconds = 0, tokens_per_second = 0;      // of this start
  uint64_t tokens = 0, fetched_bytes = 0, pushed_bytes = 0;
  std::string validation;                         // JSON: the newest losses on held-out documents; empty when there are none

  bool finished() const { return steps_done == steps; }
  nlohmann::json ToJson() const;
};

// Starts or resumes the run in options.output and trains until options.steps or until `stop` is set, which finishes the step and writes a
// checkpoint. After any crash, of the worker, the servers or both, the same call continues from the newest checkpoint, bit for bit on the
// CPU with the same number of threads and ranks (staleness 0).
// With a world size above 1 this process is one of the ranks that share every batch: each runs its part (those of a learning anchor meet at
// options.master_address and add up its gradients), rank 0 commits steps and keeps the run
// directory, a rank that stays away is named after the rank timeout, and `stop` on any rank ends all of them after the same step.
// FAILED_PRECONDITION: corpus, anchor, tree and bank do not belong together, or the run was started with other settings (all are named).
absl::StatusOr<TrainSummary> Train(const TrainOptions& options, MemoryClient& client, const std::atomic<bool>& stop);
// The same without a bank: options.mode is kAnchor.
absl::StatusOr<TrainSummary> TrainAnchorAlone(const TrainOptions& options, const std::atomic<bool>& stop);

}  // namespace membank
