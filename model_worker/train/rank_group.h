// How the ranks of a run find each other at the memory servers: rank 0 has started or resumed the run and tells the others which one it is and
// where it goes on; they check that they were started with the same settings. One thread.
#pragma once

#include "model_worker/train/run_setup.h"

namespace membank {

// Rank 0, once the run has begun.
absl::Status AnnounceRun(const TrainOptions& options, const nlohmann::json& description, const StartPoint& start, MemoryClient& client);

// The other ranks: waits for rank 0, up to options.rank_timeout_seconds. FAILED_PRECONDITION names every setting in which the two differ.
absl::StatusOr<StartPoint> FollowRun(const TrainOptions& options, const nlohmann::json& description, MemoryClient& client);

}  // namespace membank
