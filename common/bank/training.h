// What a training run says to the memory servers, as plain structs shared by client and server (design/wire.md section 2).
#pragma once

#include <cstdint>
#include <map>
#include <string>

namespace membank {

enum class OptimizerKind : uint8_t {
  kAdamW = 0,
  kSgd = 1,
  kRowWiseAdamW = 2,                       // one second moment per row of a block (block_layout.h)
};

// Weight decay falls on touched blocks only, by 1 - rate * decay ...
enum class DecayPolicy : uint8_t {
  kTouched = 0,                            // once, by the step that touches the block
  kMissed = 1,                             // once for every step since the block was touched last, all at the rate of this step
  kNone = 2,                               // never
};

// Fixed for a run; a new epoch of the run fences all older ones.
struct RunSettings {
  std::string run_id;
  uint64_t epoch = 1;                      // must be larger than any epoch the servers saw for this run
  uint32_t world_size = 1;
  uint32_t staleness = 0;                  // steps a worker may run ahead of the applied head
  uint64_t first_step = 1;                 // the next step to be pushed: head + 1
  OptimizerKind optimizer = OptimizerKind::kAdamW;
  float beta1 = 0.9f, beta2 = 0.95f, epsilon = 1e-8f;
  DecayPolicy decay = DecayPolicy::kTouched;
  bool stochastic_rounding = false;        // BF16 banks: no fp32 weights beside the payload, whose rounding is then right in the mean

  bool operator==(const RunSettings&) const = default;
};

struct StepId {
  std::string run_id;
  uint64_t epoch = 1;
  uint64_t step = 0;
};

// How the ranks of a run meet: rank 0, which began it, describes it; the others wait for that and learn what it is.
struct RunMember {
  uint32_t rank = 0, world_size = 1;
  std::string member_id;                   // unique to a process: tells a repeated call from a second process of the same rank
  std::string run_id;                      // rank 0 only, as the description: the run it began
  uint64_t epoch = 0;
  std::string description;
};

struct JoinedRun {
  std::string run_id;
  uint64_t epoch = 0;
  std::string description;                 // rank 0's
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

using RunEpochs = std::map<std::string, uint64_t>;  // run id -> highest epoch ever begun: smaller ones are fenced

}  // namespace membank
