#include "model_worker/train/no_bank.h"

#include "common/base/status_macros.h"

namespace membank {

NoBank::NoBank(const PackedInfo& corpus) {
  spec_.bank_id = "none";
  spec_.fan_out = corpus.fan_out;
  spec_.widths.assign(corpus.depth, 0);
  spec_.tree_fingerprint = corpus.tree_fingerprint;
}

absl::StatusOr<BankStatus> NoBank::GetStatus() {
  BankStatus status;
  status.spec = spec_;
  absl::MutexLock lock(&mu_);
  status.head_step = head_;
  return status;
}

absl::Status NoBank::BeginRun(const RunSettings& settings) {
  absl::MutexLock lock(&mu_);
  head_ = settings.first_step - 1;
  return absl::OkStatus();
}

absl::Status NoBank::Push(const StepId& step, uint32_t rank, absl::Span<const BlockGradient> gradients, absl::Span<const double> sums) {
  if (!gradients.empty()) return Internal("step {} has {} blocks and the run has no bank", step.step, gradients.size());
  absl::MutexLock lock(&mu_);
  sums_.assign(sums.begin(), sums.end());
  return absl::OkStatus();
}

absl::Status NoBank::ApplyStep(const StepId& step, const ApplyParameters& parameters) {
  absl::MutexLock lock(&mu_);
  head_ = step.step;
  return absl::OkStatus();
}

absl::StatusOr<std::vector<double>> NoBank::AwaitStep(const StepId& step, std::chrono::milliseconds timeout) {
  absl::MutexLock lock(&mu_);
  return sums_;
}

absl::StatusOr<JoinedRun> NoBank::JoinRun(const RunMember& member, std::chrono::milliseconds timeout) {
  return JoinedRun{member.run_id, member.epoch, member.description};
}

absl::Status NoBank::Rewind(uint64_t step) { return Internal("a run without a bank keeps no steps; asked for step {}", step); }

absl::Status NoBank::Publish(const std::string& checkpoint_id, const std::string& version, PayloadType payload) {
  return FailedPrecondition("checkpoint {} is of a run without a bank: there is nothing to publish", checkpoint_id);
}

}  // namespace membank
