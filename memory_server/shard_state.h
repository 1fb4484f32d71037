// What a shard keeps behind its reads; private to shard*.cc.
#pragma once

#include <algorithm>
#include <memory>
#include <optional>
#include <vector>

#include "memory_server/block_update.h"
#include "memory_server/shard.h"

namespace membank {

inline constexpr char kRunsFile[] = "/runs.json";  // in the data directory, {"epochs": {"<run id>": <highest>}}: fences outlive a crash

// The pushes of a step that is not applied yet.
struct Shard::PendingStep {
  explicit PendingStep(uint32_t world_size) : ranks(world_size), sums(world_size), arrived(world_size, false) {}

  std::vector<RankGradients> ranks;
  std::vector<std::vector<double>> sums;  // per rank
  std::vector<bool> arrived;
  uint32_t missing() const { return static_cast<uint32_t>(std::count(arrived.begin(), arrived.end(), false)); }
  uint64_t bytes = 0;             // counted in pushed_bytes_

  RankGradients sum;              // of all ranks, once prepared; F32 where several ranks contributed
  std::optional<double> squares;  // of `sum`, once all ranks went into it
  uint64_t log_segment = 0;       // where the step log has `sum`; 0 = nowhere
  bool logged = false;            // and the word to apply it
  std::optional<double> sum_of_squares;
  std::optional<ApplyParameters> applying;  // half applied with these: only the same finish it
};

// The head as it was when a checkpoint began; steps go on beside it.
struct Shard::Snapshot {
  std::string id;
  CutMarks marks;
  HeldSlots held;
  std::unique_ptr<BlockTable::Cut> blocks;
};

// Everything a cut holds.
struct Shard::Head {
  CutMarks marks;
  BlockTable::Contents blocks;
  std::vector<BlockId> foreign;   // in the cut, but in slots of other servers by now
};

}  // namespace membank
