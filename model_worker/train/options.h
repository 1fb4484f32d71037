// The settings of a training run, declared once: `membank train` fills them from its flags. Those that decide the numbers a run
// produces are compared when it resumes (DescribeRun); the others may change from start to start. Plain values; any thread.
#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "common/bank/training.h"
#include "common/tensors/dtype.h"
#include "nlohmann/json_fwd.hpp"

namespace membank {

// The bank learns beside a fixed anchor, both learn, or the anchor learns alone: no bank, no memory servers (mission/paper.md section 5).
enum class TrainMode : uint8_t { kFrozen = 0, kCotrain = 1, kAnchor = 2 };
enum class Schedule : uint8_t { kCosine = 0, kWsd = 1 };  // after the warm-up: cosine; or constant, then linear over the last steps

struct TrainOptions {
  std::string anchor_path;               // Hugging Face directory or GGUF
  std::string corpus_path;               // packed corpus
  std::string output;                    // run directory: log, loss curve, checkpoints
  TrainMode mode = TrainMode::kFrozen;
  uint64_t steps = 0;                    // optimizer steps of the run, >= 1; 0: as many as `epochs` needs
  double epochs = 0;                     // passes over the corpus, instead of `steps`
  uint32_t batch_sequences = 16;         // sequences of a step, >= 1
  uint32_t micro_batch_sequences = 0;    // sequences of one forward pass; 0 = all. Smaller: less memory, same step
  double learning_rate = 1e-4;           // after warm-up: of the blocks; of the anchor when it is trained alone
  double min_learning_rate = 1e-5;       // of the last step, <= learning_rate
  double anchor_learning_rate = -1;      // co-training only; < 0 = learning_rate. The same schedule, scaled
  Schedule schedule = Schedule::kCosine;
  uint64_t warmup_steps = 0;             // linear from 0; < steps
  uint64_t cooldown_steps = 0;           // WSD: the last steps, linear to the floor; 0 = a fifth of the steps
  double weight_decay = 1e-3;            // decoupled; on touched blocks and on a learning anchor
  double anchor_weight_decay = -1;       // of a learning anchor; < 0 = weight_decay
  bool decay_norms = true;               // false: the anchor's vectors (norms, biases) do not decay
  double z_loss = 0;                     // c: every target adds c * log(sum(exp(logits)))^2 to the loss; 0 = off, usual 1e-4
  double clip = 1.0;                     // global norm of anchor and memory gradients together; 0 = no clipping
  OptimizerKind optimizer = OptimizerKind::kAdamW;  // of the blocks; a co-trained anchor has AdamW
  DecayPolicy decay = DecayPolicy::kTouched;        // how often weight decay falls on a block when a step touches it
  bool master_weights = true;            // false: BF16 banks keep no fp32 weights beside the payload and round it stochastically
  double beta1 = 0.9, beta2 = 0.95, epsilon = 1e-8;
  // A sequence learns the generic memory instead of its path with this probability; < 0 = 1/(k+1), the paper's (0 with generic_control).
  double generic_probability = -1;
  // Every sequence is in its batch twice, with its path and with the generic memory, so that the control sees exactly as many tokens as the
  // bank; each kind has its own mean loss and disjoint blocks. They share the clip norm. Needs a frozen anchor (otherwise the control would
  // train the anchor too). Doubles the rows of a batch.
  bool generic_control = false;
  DType dtype = DType::kBF16;            // of activations, blocks and pushed gradients: F32 or BF16; sums are fp32
  uint64_t seed = 0;                     // order of the sequences and choice of the generic ones
  uint32_t staleness = 0;                // steps a worker may compute ahead of the applied ones. 0: bit-reproducible
  std::optional<DType> gradient_dtype;   // of pushed gradients: F32, BF16 or I8_ROWS (with error feedback); none = dtype
  uint32_t rank = 0, world_size = 1;     // this process among those that share every batch; rank 0 commits steps and checkpoints
  // Ranks of a learning anchor meet here, as torchrun says it (MASTER_ADDR, MASTER_PORT); those of a frozen one need no address but the servers'.
  std::string master_address;
  uint16_t master_port = 29500;
  bool agent_store = false;              // torchrun's agent serves the store there (TORCHELASTIC_USE_AGENT_STORE)
  std::string store_prefix;              // keys of this start, where the store outlives it
  uint32_t rank_timeout_seconds = 300;   // how long a rank waits for another one before it gives up, naming it
  std::string validation_path;           // packed corpus of held-out documents; empty: no validation
  uint64_t validate_every = 0;           // steps; 0 = only after the last one
  uint64_t validation_sequences = 0;     // of it, at most; 0 = all
  uint64_t checkpoint_every = 200;       // steps; 0 = only at start and end
  uint32_t keep_checkpoints = 2;         // >= 1
  bool resume = true;                    // continue from the newest checkpoint in `output`; false: `output` must hold no run
  uint64_t log_every = 1;                // steps between lines of log.jsonl
  uint32_t threads = 0;                  // compute threads; 0 = one per core
  uint64_t cache_bytes = 2ull << 30;     // resident blocks on the worker
  bool prefetch = true;                  // the next step's data and blocks come while this one computes

  // Turns `epochs` into `steps`; both or neither is INVALID_ARGUMENT.
  absl::Status ResolveSteps(uint64_t corpus_sequences);
  // INVALID_ARGUMENT names the option, its value and the range.
  absl::Status Validate() const;
  DType EffectiveGradientDType() const { return gradient_dtype.value_or(dtype); }
  uint32_t UpdatesInFlight() const { return std::max(1u, staleness); }  // submitted but not applied, at most
  double EffectiveGenericProbability(uint32_t fan_out) const;
  double EffectiveAnchorLearningRate() const { return anchor_learning_rate < 0 ? learning_rate : anchor_learning_rate; }
  double EffectiveAnchorWeightDecay() const { return anchor_weight_decay < 0 ? weight_decay : anchor_weight_decay; }
  uint64_t EffectiveCooldownSteps() const;
  bool TrainsAnchor() const { return mode != TrainMode::kFrozen; }
  bool HasBank() const { return mode != TrainMode::kAnchor; }
  // Of `step`, counted from 1, before the anchor's own factor.
  double LearningRateOf(uint64_t step) const;
};

// What a run's numbers depend on: the options above and the identity of what it reads.
struct RunFacts {
  std::string anchor_fingerprint, corpus_fingerprint, tree_fingerprint, bank_hash;
};
std::string_view TrainModeName(TrainMode mode);            // as --mode spells it
std::string_view ScheduleName(Schedule schedule);          // as --schedule spells it
std::string_view OptimizerName(OptimizerKind kind);        // as --optimizer spells it
std::string_view DecayPolicyName(DecayPolicy policy);      // as --decay spells it
nlohmann::json DescribeRun(const TrainOptions& options, const RunFacts& facts, uint32_t fan_out);

// FAILED_PRECONDITION naming every entry that differs, with both values.
absl::Status CompareRuns(const nlohmann::json& recorded, const nlohmann::json& current, const std::string& where);

// Linear warm-up, then cosine from `peak` to `floor` at the last step; `step` counts from 1 to `steps`.
double LearningRateAt(uint64_t step, uint64_t steps, uint64_t warmup, double peak, double floor);
// Linear warm-up, `peak`, then linear over the last `cooldown` steps to `floor` at the last one.
double WsdLearningRateAt(uint64_t step, uint64_t steps, uint64_t warmup, uint64_t cooldown, double peak, double floor);

}  // namespace membank
