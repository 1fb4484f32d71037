// Durability class "step": what the shard logs, and how it comes back from the log. See shard.h and step_log.h.
#include <algorithm>
#include <utility>

#include "common/bank/gradient_codec.h"
#include "common/base/status_macros.h"
#include "memory_server/shard.h"
#include "memory_server/shard_state.h"

namespace membank {
namespace {

LogBase BaseOf(const std::optional<Cut>& cut) { return cut.has_value() ? LogBase{cut->id, cut->marks} : LogBase{}; }

}  // namespace

absl::Status Shard::LogGradients(const RunSettings& run, uint64_t step, PendingStep* pending) {
  if (options_.durability != Durability::kStep) return absl::OkStatus();
  uint64_t bytes = 0;
  for (const auto& [id, gradient] : pending->sum) bytes += gradient.bytes.size();
  RETURN_IF_ERROR(CheckFreeSpace(bytes));
  RETURN_IF_ERROR(step_log_->WriteGradients(run, step, pending->sum));
  pending->log_segment = step_log_->segment();
  return absl::OkStatus();
}

absl::Status Shard::LogApply(const RunSettings& run, uint64_t step, const ApplyParameters& parameters, PendingStep* pending) {
  if (options_.durability != Durability::kStep || pending->logged) return absl::OkStatus();
  // A checkpoint may have begun a new segment since the step was prepared.
  if (pending->log_segment != step_log_->segment()) RETURN_IF_ERROR(LogGradients(run, step, pending));
  RETURN_IF_ERROR(step_log_->WriteApply(step, parameters));
  pending->logged = true;
  return absl::OkStatus();
}

absl::Status Shard::LogCut(const std::string& id, const CutMarks& marks) {
  return options_.durability == Durability::kStep ? step_log_->Begin({id, marks}, /*continues=*/true) : absl::OkStatus();
}

absl::Status Shard::LogRestore(const Cut& cut) {
  return options_.durability == Durability::kStep ? step_log_->Begin(BaseOf(cut), /*continues=*/false) : step_log_->Clear();
}

absl::Status Shard::LogCommit(const Cut& cut) {
  return options_.durability == Durability::kStep ? step_log_->RemoveBefore(BaseOf(cut)) : step_log_->Clear();
}

// Steps that were logged under "step" count under "checkpoint", too, until the next checkpoint is committed.
absl::Status Shard::OpenLog(const std::optional<Cut>& cut) {
  ASSIGN_OR_RETURN(step_log_, StepLog::Open(options_.data_directory + "/steps", spec_hash_));
  RETURN_IF_ERROR(ReplayLog(cut, ~uint64_t{0}));
  if (options_.durability == Durability::kStep && step_log_->empty()) return step_log_->Begin(BaseOf(cut), /*continues=*/false);
  return absl::OkStatus();
}

absl::Status Shard::ReplayLog(const std::optional<Cut>& cut, uint64_t last_step) {
  return step_log_->Replay(BaseOf(cut), last_step, [this](LoggedStep logged) ABSL_NO_THREAD_SAFETY_ANALYSIS {  // train_mu_ is held
    return ApplyLogged(std::move(logged));
  });
}

absl::Status Shard::ApplyLogged(LoggedStep logged) {
  for (const auto& [id, gradient] : logged.gradients) {
    RETURN_IF_ERROR(CheckBlock(id));
    const uint64_t expected = GradientBytes(gradient.dtype, ShapeOf(spec_, id.level));
    if (gradient.bytes.size() != expected)
      return DataLoss("step log: the gradient of block {} in step {} has {} bytes, must have {}", ToString(id), logged.step,
                      gradient.bytes.size(), expected);
  }
  RETURN_IF_ERROR(UpdateBlocks(logged.gradients, logged.run, logged.step, logged.parameters));
  absl::MutexLock lock(&run_mu_);
  head_step_ = logged.step;
  run_.run_id = logged.run.run_id;
  run_.epoch = logged.run.epoch;
  uint64_t& epoch = run_epochs_[run_.run_id];
  epoch = std::max(epoch, run_.epoch);
  return absl::OkStatus();
}

absl::Status Shard::Rewind(uint64_t step) {
  absl::MutexLock cut_lock(&cut_mu_);
  RETURN_IF_ERROR(AwaitCutsThawed());
  absl::MutexLock train(&train_mu_);
  if (options_.durability != Durability::kStep)
    return FailedPrecondition("server \"{}\" has durability class checkpoint, it can only go back to checkpoints; --durability step keeps steps",
                              options_.server_id);
  const std::optional<Cut> cut = checkpoints_->LastCommitted();
  const uint64_t first = cut.has_value() ? cut->marks.step : 0;
  {
    absl::MutexLock lock(&run_mu_);
    if (stopping_) return Unavailable("server \"{}\" is shutting down", options_.server_id);
    if (step == head_step_ && torn_step_ == 0) return absl::OkStatus();
    if (step < first || step > head_step_)
      return OutOfRange("server \"{}\" cannot go to step {}: its last committed checkpoint is at step {}, its head at step {}",
                        options_.server_id, step, first, head_step_);
  }
  Head head;
  if (cut.has_value()) {
    ASSIGN_OR_RETURN(head, LoadCut(*cut, *ownership_.map()));
  }
  ASSIGN_OR_RETURN(BlockTable::LiveStores stores, OpenHeadStores(cut, head.foreign));
  InstallHead(std::move(head), std::move(stores));
  RETURN_IF_ERROR(ReplayLog(cut, step));
  absl::MutexLock lock(&run_mu_);
  if (head_step_ == step) return absl::OkStatus();
  return DataLoss("the step log of server \"{}\" ends at step {}, before step {}", options_.server_id, head_step_, step);
}

}  // namespace membank
