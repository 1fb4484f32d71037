#include "model_worker/train/step_committer.h"

#include <cmath>

#include "common/base/status_macros.h"
#include "model_worker/train/stopwatch.h"

namespace membank {

StepCommitter::StepCommitter(MemoryClient* client, const CommitterOptions& options)
    : client_(client), options_(options), submitted_(options.head), applied_(options.head), thread_([this] { Run(); }) {}

StepCommitter::~StepCommitter() {
  {
    absl::MutexLock lock(&mu_);
    stopping_ = true;
  }
  thread_.join();
}

absl::Status StepCommitter::Submit(StepUpdate update) {
  absl::MutexLock lock(&mu_);
  auto room = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) { return !status_.ok() || submitted_ - applied_ < options_.in_flight; };
  mu_.Await(absl::Condition(&room));
  if (!status_.ok()) return status_;
  submitted_ = update.step;
  pending_.push_back(std::move(update));
  return absl::OkStatus();
}

absl::StatusOr<StepOutcome> StepCommitter::WaitPrepared(uint64_t step) {
  absl::MutexLock lock(&mu_);
  auto known = [this, step]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) { return !status_.ok() || prepared_.step >= step; };
  mu_.Await(absl::Condition(&known));
  if (!status_.ok()) return status_;
  return prepared_;
}

absl::Status StepCommitter::WaitApplied(uint64_t step) {
  absl::MutexLock lock(&mu_);
  auto done = [this, step]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) { return !status_.ok() || applied_ >= step; };
  mu_.Await(absl::Condition(&done));
  return status_;
}

uint64_t StepCommitter::applied() const {
  absl::MutexLock lock(&mu_);
  return applied_;
}

std::vector<StepOutcome> StepCommitter::TakeOutcomes() {
  absl::MutexLock lock(&mu_);
  return std::exchange(outcomes_, {});
}

void StepCommitter::Run() {
  for (;;) {
    StepUpdate update;
    {
      absl::MutexLock lock(&mu_);
      auto work = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) { return stopping_ || !pending_.empty(); };
      mu_.Await(absl::Condition(&work));
      if (pending_.empty()) return;
      update = std::move(pending_.front());
      pending_.pop_front();
    }
    const absl::Status status = Commit(update);
    absl::MutexLock lock(&mu_);
    if (!status.ok()) {
      status_ = Annotate(status, fmt::format("step {}", update.step));
      return;
    }
    applied_ = update.step;
  }
}

absl::Status StepCommitter::Commit(const StepUpdate& update) {
  const StepId id{options_.run_id, options_.epoch, update.step};
  StepOutcome outcome;
  outcome.step = update.step;
  outcome.sums = update.sums;
  Stopwatch watch;
  RETURN_IF_ERROR(client_->Push(id, options_.rank, update.gradients, update.sums));
  outcome.push_seconds = watch.Lap();
  if (options_.rank == 0) RETURN_IF_ERROR(PrepareAndApply(id, update, &outcome));
  if (options_.world_size > 1) {
    ASSIGN_OR_RETURN(outcome.sums, client_->AwaitStep(id, options_.rank_timeout));
    if (outcome.sums.size() != update.sums.size())
      return Internal("step {} came back with {} sums of {}", update.step, outcome.sums.size(), update.sums.size());
  }
  outcome.apply_seconds = watch.Lap();
  absl::MutexLock lock(&mu_);
  outcomes_.push_back(std::move(outcome));
  return absl::OkStatus();
}

absl::Status StepCommitter::PrepareAndApply(const StepId& id, const StepUpdate& update, StepOutcome* outcome) {
  ASSIGN_OR_RETURN(const double memory_sum, client_->PrepareStep(id, options_.rank_timeout));
  outcome->gradient_norm = std::sqrt(memory_sum + update.anchor_sum_of_squares);
  if (!std::isfinite(outcome->gradient_norm))
    return FailedPrecondition("the gradient's global norm is {}; its batch is {}. Nothing was applied and the last checkpoint is intact: lower "
                              "--learning-rate or look at these sequences", outcome->gradient_norm, update.batch);
  if (options_.clip > 0 && outcome->gradient_norm > options_.clip)
    outcome->scale = options_.clip / (outcome->gradient_norm + 1e-6);  // as torch.nn.utils.clip_grad_norm_
  {
    absl::MutexLock lock(&mu_);
    prepared_ = *outcome;
  }
  ApplyParameters parameters;
  parameters.scale = static_cast<float>(outcome->scale);
  parameters.learning_rate = static_cast<float>(update.learning_rate);
  parameters.weight_decay = static_cast<float>(update.weight_decay);
  return client_->ApplyStep(id, parameters);
}

}  // namespace membank
