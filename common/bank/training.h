// What a training run says to the memory servers, as plain structs shared by client and server (design/wire.md section 2).
#pragma once

#include <cstdint>
#include <string>

namespace membank {

enum class OptimizerKind : uint8_t { kAdamW = 0, kSgd = 1 };

// Fixed for a run; a new epoch of the run fences all older ones.
struct RunSettings {
  std::string run_id;
  uint64_t epoch = 1;                      // must be larger than any epoch the servers saw for this run
  uint32_t world_size = 1;
  uint32_t staleness = 0;                  // steps a worker may run ahead of the applied head
  uint64_t first_step = 1;                 // the next step to be pushed: head + 1
  OptimizerKind optimizer = OptimizerKind::kAdamW;
  float beta1 = 0.9f, beta2 = 0.95f, epsilon = 1e-8f;

  bool operator==(const RunSettings&) const = default;
};

struct StepId {
  std::string run_id;
  uint64_t epoch = 1;
  uint64_t step = 0;
};

struct ApplyParameters {
  float scale = 1.0f;                      // clip factor; gradients are multiplied by it
  float learning_rate = 0.0f;
  float weight_decay = 0.0f;               // decoupled; on touched blocks only

  bool operator==(const ApplyParameters&) const = default;
};

struct CheckpointInfo {
  std::string id;
  uint64_t step = 0;
  bool committed = false;
};

}  // namespace membank
