#include "common/rpc/training_wire.h"

#include "common/base/status_macros.h"

namespace membank {
namespace {

v1::OptimizerKind ToProto(OptimizerKind kind) {
  if (kind == OptimizerKind::kSgd) return v1::OPTIMIZER_KIND_SGD;
  return kind == OptimizerKind::kRowWiseAdamW ? v1::OPTIMIZER_KIND_ROW_WISE_ADAMW : v1::OPTIMIZER_KIND_ADAMW;
}

v1::DecayPolicy ToProto(DecayPolicy policy) {
  if (policy == DecayPolicy::kMissed) return v1::DECAY_POLICY_MISSED;
  return policy == DecayPolicy::kNone ? v1::DECAY_POLICY_NONE : v1::DECAY_POLICY_TOUCHED;
}

}  // namespace

void ToProto(const RunSettings& settings, v1::BeginRunRequest* out) {
  out->set_run_id(settings.run_id);
  out->set_epoch(settings.epoch);
  out->set_world_size(settings.world_size);
  out->set_staleness(settings.staleness);
  out->set_first_step(settings.first_step);
  out->set_optimizer(ToProto(settings.optimizer));
  out->set_beta1(settings.beta1);
  out->set_beta2(settings.beta2);
  out->set_epsilon(settings.epsilon);
  out->set_decay(ToProto(settings.decay));
  out->set_stochastic_rounding(settings.stochastic_rounding);
}

absl::StatusOr<RunSettings> FromProto(const v1::BeginRunRequest& request) {
  RunSettings settings;
  switch (request.optimizer()) {
    case v1::OPTIMIZER_KIND_ADAMW: settings.optimizer = OptimizerKind::kAdamW; break;
    case v1::OPTIMIZER_KIND_SGD: settings.optimizer = OptimizerKind::kSgd; break;
    case v1::OPTIMIZER_KIND_ROW_WISE_ADAMW: settings.optimizer = OptimizerKind::kRowWiseAdamW; break;
    default:
      return InvalidArgument("optimizer {} is unknown; allowed: ADAMW (1), SGD (2), ROW_WISE_ADAMW (3)", static_cast<int>(request.optimizer()));
  }
  switch (request.decay()) {
    case v1::DECAY_POLICY_UNSPECIFIED:
    case v1::DECAY_POLICY_TOUCHED: settings.decay = DecayPolicy::kTouched; break;
    case v1::DECAY_POLICY_MISSED: settings.decay = DecayPolicy::kMissed; break;
    case v1::DECAY_POLICY_NONE: settings.decay = DecayPolicy::kNone; break;
    default: return InvalidArgument("decay policy {} is unknown; allowed: TOUCHED (1), MISSED (2), NONE (3)", static_cast<int>(request.decay()));
  }
  settings.stochastic_rounding = request.stochastic_rounding();
  settings.run_id = request.run_id();
  settings.epoch = request.epoch();
  settings.world_size = request.world_size();
  settings.staleness = request.staleness();
  settings.first_step = request.first_step();
  settings.beta1 = request.beta1();
  settings.beta2 = request.beta2();
  settings.epsilon = request.epsilon();
  return settings;
}

}  // namespace membank
