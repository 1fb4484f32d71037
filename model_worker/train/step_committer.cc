#include "model_worker/train/step_committer.h"

#include <cmath>

#include "common/base/status_macros.h"
#include "model_worker/train/stopwatch.h"

namespace membank {
namespace {

constexpr std::chrono::milliseconds kPrepareTimeout{120000};

}  // namespace

StepCommitter::StepCommitter(MemoryClient* client, std::string run_id, uint64_t epoch, uint64_t head, double clip)
    : client_(client), run_id_(std::move(run_id)), epoch_(epoch), clip_(clip), submitted_(head), applied_(head), thread_([this] { Run(); }) {
}

StepCommitter::~StepCommitter() {
  {
    absl::MutexLock lock(&mu_);
    stopping_ = true;
  }
  thread_.join();
}

absl::Status StepCommitter::Submit(StepUpdate update) {
  absl::MutexLock lock(&mu_);
  auto idle = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) { return !status_.ok() || applied_ == submitted_; };
  mu_.Await(absl::Condition(&idle));
  if (!status_.ok()) return status_;
  submitted_ = update.step;
  pending_ = std::make_unique<StepUpdate>(std::move(update));
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
    std::unique_ptr<StepUpdate> update;
    {
      absl::MutexLock lock(&mu_);
      auto work = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) { return stopping_ || pending_ != nullptr; };
      mu_.Await(absl::Condition(&work));
      if (pending_ == nullptr) return;
      update = std::move(pending_);
    }
    const absl::Status status = Commit(*update);
    absl::MutexLock lock(&mu_);
    if (!status.ok()) {
      status_ = Annotate(status, fmt::format("step {}", update->step));
      return;
    }
    applied_ = update->step;
  }
}

absl::Status StepCommitter::Commit(const StepUpdate& update) {
  const StepId id{run_id_, epoch_, update.step};
  StepOutcome outcome;
  outcome.step = update.step;
  Stopwatch watch;
  RETURN_IF_ERROR(client_->Push(id, /*rank=*/0, update.gradients));
  outcome.push_seconds = watch.Lap();

  ASSIGN_OR_RETURN(const double memory_sum, client_->PrepareStep(id, kPrepareTimeout));
  outcome.gradient_norm = std::sqrt(memory_sum + update.anchor_sum_of_squares);
  if (!std::isfinite(outcome.gradient_norm))
    return FailedPrecondition("the gradient's global norm is {}; nothing was applied. Lower --learning-rate or look at the batch", outcome.gradient_norm);
  if (clip_ > 0 && outcome.gradient_norm > clip_) outcome.scale = clip_ / (outcome.gradient_norm + 1e-6);  // as torch.nn.utils.clip_grad_norm_
  {
    absl::MutexLock lock(&mu_);
    prepared_ = outcome;
  }
  ApplyParameters parameters;
  parameters.scale = static_cast<float>(outcome.scale);
  parameters.learning_rate = static_cast<float>(update.learning_rate);
  parameters.weight_decay = static_cast<float>(update.weight_decay);
  RETURN_IF_ERROR(client_->ApplyStep(id, parameters));
  outcome.apply_seconds = watch.Lap();
  absl::MutexLock lock(&mu_);
  outcomes_.push_back(outcome);
  return absl::OkStatus();
}

}  // namespace membank
