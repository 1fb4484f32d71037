#include "model_worker/train/options.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "common/bank/gradient_codec.h"
#include "common/base/status_macros.h"
#include "nlohmann/json.hpp"

namespace membank {
namespace {

absl::Status CheckRange(const char* name, double value, double low, double high) {
  if (!(value >= low && value <= high)) return InvalidArgument("--{} is {}; allowed: {} to {}", name, value, low, high);
  return absl::OkStatus();
}

}  // namespace

absl::Status TrainOptions::ResolveSteps(uint64_t corpus_sequences) {
  if ((steps > 0) == (epochs > 0)) return InvalidArgument("--steps is {} and --epochs is {}; give exactly one of them, above 0", steps, epochs);
  if (epochs > 0) steps = static_cast<uint64_t>(std::ceil(epochs * static_cast<double>(corpus_sequences) / std::max<uint32_t>(batch_sequences, 1)));
  epochs = 0;
  return absl::OkStatus();
}

absl::Status TrainOptions::Validate() const {
  if (anchor_path.empty()) return absl::InvalidArgumentError("--anchor is empty; give a Hugging Face directory or a GGUF file");
  if (corpus_path.empty()) return absl::InvalidArgumentError("--corpus is empty; give the directory that `membank corpus` wrote");
  if (output.empty()) return absl::InvalidArgumentError("--output is empty; give the directory of the run");
  RETURN_IF_ERROR(CheckRange("steps", steps, 1, 1e9));
  RETURN_IF_ERROR(CheckRange("batch-sequences", batch_sequences, 1, 1 << 20));
  RETURN_IF_ERROR(CheckRange("micro-batch-sequences", micro_batch_sequences, 0, batch_sequences));
  RETURN_IF_ERROR(CheckRange("learning-rate", learning_rate, 0, 1));
  RETURN_IF_ERROR(CheckRange("min-learning-rate", min_learning_rate, 0, learning_rate));
  if (anchor_learning_rate > 1) return InvalidArgument("--anchor-learning-rate is {}; allowed: 0 to 1", anchor_learning_rate);
  if (anchor_learning_rate >= 0 && mode != TrainMode::kCotrain)
    return InvalidArgument("--anchor-learning-rate needs --mode cotrain; with --mode {} {}", TrainModeName(mode),
                           TrainsAnchor() ? "--learning-rate is the anchor's" : "the anchor does not learn");
  RETURN_IF_ERROR(CheckRange("warmup-steps", warmup_steps, 0, steps - 1));
  if (schedule != Schedule::kWsd && cooldown_steps > 0)
    return InvalidArgument("--cooldown-steps {} needs --schedule wsd; it is {}", cooldown_steps, ScheduleName(schedule));
  RETURN_IF_ERROR(CheckRange("cooldown-steps", cooldown_steps, 0, steps - warmup_steps));
  RETURN_IF_ERROR(CheckRange("weight-decay", weight_decay, 0, 10));
  if (anchor_weight_decay > 10) return InvalidArgument("--anchor-weight-decay is {}; allowed: 0 to 10", anchor_weight_decay);
  if (!TrainsAnchor() && (anchor_weight_decay >= 0 || !decay_norms))
    return absl::InvalidArgumentError("--anchor-weight-decay and --decay-norms need --mode cotrain or anchor; the anchor does not learn");
  RETURN_IF_ERROR(CheckRange("z-loss", z_loss, 0, 1));
  RETURN_IF_ERROR(CheckRange("clip", clip, 0, 1e9));
  if (generic_probability > 1) return InvalidArgument("--generic-probability is {}; allowed: 0 to 1", generic_probability);
  if (generic_control && mode == TrainMode::kCotrain)
    return absl::InvalidArgumentError("--generic-control needs --mode frozen: the anchor would be trained on the control too; "
                                      "use --generic-probability when co-training");
  if (generic_control && generic_probability > 0)
    return InvalidArgument("--generic-control already gives the generic memory every sequence; --generic-probability {} does not go "
                           "with it, leave one out", generic_probability);
  if (!HasBank() && (generic_control || generic_probability > 0 || staleness > 0 || gradient_dtype.has_value()))
    return absl::InvalidArgumentError("--mode anchor has no bank: --generic-control, --generic-probability, --staleness and --gradient-dtype do "
                                      "not go with it");
  if (dtype != DType::kF32 && dtype != DType::kBF16)
    return InvalidArgument("--dtype is {}; allowed: bf16, fp32", DTypeName(dtype));
  if (!IsGradientDType(EffectiveGradientDType()))
    return InvalidArgument("--gradient-dtype is {}; allowed: bf16, fp32, int8", GradientDTypeName(EffectiveGradientDType()));
  RETURN_IF_ERROR(CheckRange("staleness", staleness, 0, 16));
  RETURN_IF_ERROR(CheckRange("world-size", world_size, 1, 4096));
  RETURN_IF_ERROR(CheckRange("rank", rank, 0, world_size - 1));
  RETURN_IF_ERROR(CheckRange("rank-timeout", rank_timeout_seconds, 1, 86400));
  if (world_size > batch_sequences)
    return InvalidArgument("--batch-sequences is {} for --world-size {}; every rank needs a sequence of each step", batch_sequences, world_size);
  if (world_size > 1 && TrainsAnchor() && (master_address.empty() || master_port == 0))
    return InvalidArgument("--mode {} with --world-size {}: the ranks add up the anchor's gradients among themselves; say where rank 0 is with "
                           "--master-addr and --master-port (MASTER_ADDR and MASTER_PORT; torchrun sets them)", TrainModeName(mode), world_size);
  if (validation_path.empty() && (validate_every > 0 || validation_sequences > 0))
    return absl::InvalidArgumentError("--validate-every and --validation-sequences need --validation: the corpus of held-out documents");
  RETURN_IF_ERROR(CheckRange("keep-checkpoints", keep_checkpoints, 1, 1e6));
  RETURN_IF_ERROR(CheckRange("log-every", log_every, 1, 1e9));
  RETURN_IF_ERROR(CheckRange("threads", threads, 0, 1024));
  return absl::OkStatus();
}

double TrainOptions::EffectiveGenericProbability(uint32_t fan_out) const {
  if (generic_control || !HasBank()) return 0;
  return generic_probability < 0 ? 1.0 / (fan_out + 1.0) : generic_probability;
}

uint64_t TrainOptions::EffectiveCooldownSteps() const {
  return std::min(cooldown_steps > 0 ? cooldown_steps : std::max<uint64_t>(steps / 5, 1), steps - warmup_steps);
}

double TrainOptions::LearningRateOf(uint64_t step) const {
  if (schedule == Schedule::kCosine) return LearningRateAt(step, steps, warmup_steps, learning_rate, min_learning_rate);
  return WsdLearningRateAt(step, steps, warmup_steps, EffectiveCooldownSteps(), learning_rate, min_learning_rate);
}

std::string_view TrainModeName(TrainMode mode) {
  return mode == TrainMode::kFrozen ? "frozen" : mode == TrainMode::kCotrain ? "cotrain" : "anchor";
}

std::string_view ScheduleName(Schedule schedule) { return schedule == Schedule::kCosine ? "cosine" : "wsd"; }

std::string_view OptimizerName(OptimizerKind kind) {
  return kind == OptimizerKind::kSgd ? "sgd" : kind == OptimizerKind::kRowWiseAdamW ? "row-wise-adamw" : "adamw";
}

std::string_view DecayPolicyName(DecayPolicy policy) {
  return policy == DecayPolicy::kMissed ? "missed" : policy == DecayPolicy::kNone ? "none" : "touched";
}

nlohmann::json DescribeRun(const TrainOptions& o, const RunFacts& facts, uint32_t fan_out) {
  nlohmann::json run = {
      {"mode", TrainModeName(o.mode)},
      {"steps", o.steps},
      {"batch-sequences", o.batch_sequences},
      {"micro-batch-sequences", o.micro_batch_sequences},
      {"learning-rate", o.learning_rate},
      {"min-learning-rate", o.min_learning_rate},
      {"warmup-steps", o.warmup_steps},
      {"weight-decay", o.weight_decay},
      {"clip", o.clip},
      {"optimizer", OptimizerName(o.optimizer)},
      {"decay", DecayPolicyName(o.decay)},
      {"master-weights", o.master_weights ? "fp32" : "none"},
      {"betas", {o.beta1, o.beta2}},
      {"epsilon", o.epsilon},
      {"generic-probability", o.EffectiveGenericProbability(fan_out)},
      {"generic-control", o.generic_control},
      {"dtype", std::string(DTypeName(o.dtype))},
      {"gradient-dtype", std::string(GradientDTypeName(o.EffectiveGradientDType()))},
      {"seed", o.seed},
      {"staleness", o.staleness},
      {"anchor", facts.anchor_fingerprint},
      {"corpus", facts.corpus_fingerprint},
      {"tree", facts.tree_fingerprint},
      {"bank", facts.bank_hash},
  };
  // Only where they say something, so that runs of older releases go on.
  if (o.mode == TrainMode::kCotrain) run["anchor-learning-rate"] = o.EffectiveAnchorLearningRate();
  if (o.schedule != Schedule::kCosine) {
    run["schedule"] = ScheduleName(o.schedule);
    run["cooldown-steps"] = o.EffectiveCooldownSteps();
  }
  if (o.z_loss > 0) run["z-loss"] = o.z_loss;
  if (o.anchor_weight_decay >= 0) run["anchor-weight-decay"] = o.anchor_weight_decay;
  if (!o.decay_norms) run["decay-norms"] = false;
  return run;
}

absl::Status CompareRuns(const nlohmann::json& recorded, const nlohmann::json& current, const std::string& where) {
  std::string differences;
  auto add = [&](const std::string& key, const std::string& was, const std::string& is) {
    differences += fmt::format("{}{} was {}, is now {}", differences.empty() ? "" : "; ", key, was, is);
  };
  for (const auto& [key, value] : current.items()) {
    if (!recorded.contains(key)) add(key, "absent", value.dump());
    else if (recorded[key] != value) add(key, recorded[key].dump(), value.dump());
  }
  for (const auto& [key, value] : recorded.items())
    if (!current.contains(key)) add(key, value.dump(), "absent");
  if (differences.empty()) return absl::OkStatus();
  return FailedPrecondition("the run in {} was started differently: {}. Resume it with its own settings, or give another --output",
                            where, differences);
}

double LearningRateAt(uint64_t step, uint64_t steps, uint64_t warmup, double peak, double floor) {
  if (step <= warmup) return peak * static_cast<double>(step) / static_cast<double>(warmup);
  // The first step after the warm-up has the full rate, the last one the floor.
  const double span = static_cast<double>(steps - warmup) - 1.0;
  const double progress = span <= 0 ? 0.0 : static_cast<double>(std::min(step, steps) - warmup - 1) / span;
  return floor + (peak - floor) * 0.5 * (1.0 + std::cos(std::numbers::pi * progress));
}

double WsdLearningRateAt(uint64_t step, uint64_t steps, uint64_t warmup, uint64_t cooldown, double peak, double floor) {
  if (step <= warmup) return peak * static_cast<double>(step) / static_cast<double>(warmup);
  const uint64_t constant = steps - cooldown;  // the last step at the peak
  if (step <= constant) return peak;
  return peak + (floor - peak) * static_cast<double>(std::min(step, steps) - constant) / static_cast<double>(cooldown);
}

}  // namespace membank
