// What a shard keeps behind its reads; private to shard*.cc.
#pragma once

#include <algorithm>
#include <memory>
#include <optional>
#include <vector>

#include "memory_server/shard.h"

namespace membank {

// Optimizer state of a touched block. Changed by one thread at a time, under train_mu_ (held by the step, not by its helper threads).
struct Shard::TrainState {
  Buffer weights;                // fp32, BF16 banks only; of F32 banks the payload is the weights
  Buffer m, v;                   // fp32; empty until AdamW touches the block
  uint64_t adam_steps = 0;       // for bias correction
  uint64_t written_version = 0;  // the version in the head stores; 0 = not there

  uint64_t bytes() const { return weights.size() + m.size() + v.size(); }
};

// The pushes of a step that is not applied yet.
struct Shard::PendingStep {
  explicit PendingStep(uint32_t world_size) : ranks(world_size), arrived(world_size, false) {}

  std::vector<RankGradients> ranks;
  std::vector<bool> arrived;
  uint32_t missing() const { return static_cast<uint32_t>(std::count(arrived.begin(), arrived.end(), false)); }
  uint64_t bytes = 0;             // counted in pushed_bytes_

  RankGradients sum;              // of all ranks, once prepared
  std::optional<double> sum_of_squares;
};

struct Shard::DirtyBlocks {
  struct Block {
    BlockId id;
    View view;  // holds the payload while it is written
    TrainState* state;
  };
  std::vector<Block> blocks;  // ascending
  uint64_t bytes = 0;
  CutDigest digest;           // of all touched blocks, dirty or not
};

// Everything a cut holds.
struct Shard::Head {
  CutMarks marks;
  absl::flat_hash_map<BlockId, View> views;
  absl::flat_hash_map<BlockId, std::unique_ptr<TrainState>> states;
  uint64_t state_bytes = 0;
};

}  // namespace membank
