#include "model_worker/train/no_bank.h"

#include "common/base/json.h"
#include "common/base/status_macros.h"
#include "nlohmann/json.hpp"

namespace membank {
namespace {

constexpr char kRunKey[] = "run";

}  // namespace

NoBank::NoBank(const PackedInfo& corpus, Rendezvous* rendezvous, std::unique_ptr<Collectives> collectives)
    : rendezvous_(rendezvous), collectives_(std::move(collectives)) {
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
  std::vector<double> all(sums.begin(), sums.end());
  if (collectives_ != nullptr) {
    collectives_->StartAllReduce(torch::from_blob(all.data(), {static_cast<int64_t>(all.size())}, torch::kDouble));
    RETURN_IF_ERROR(collectives_->Wait(fmt::format("adding the losses of step {}", step.step)));
  }
  absl::MutexLock lock(&mu_);
  sums_ = std::move(all);
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
  if (member.rank == 0) {
    const nlohmann::json said = {{"run_id", member.run_id}, {"epoch", member.epoch}, {"description", member.description}};
    if (rendezvous_ != nullptr) RETURN_IF_ERROR(rendezvous_->Set(kRunKey, said.dump()));
    return JoinedRun{member.run_id, member.epoch, member.description};
  }
  ASSIGN_OR_RETURN(const std::string text, rendezvous_->Get(kRunKey, timeout));
  ASSIGN_OR_RETURN(const nlohmann::json said, ParseJsonObject(text, "what rank 0 says of the run"));
  try {
    return JoinedRun{said.at("run_id"), said.at("epoch"), said.at("description")};
  } catch (const nlohmann::json::exception& e) {
    return FailedPrecondition("rank 0 describes the run in another way ({}); use the same release on all ranks", e.what());
  }
}

absl::Status NoBank::Rewind(uint64_t step) { return Internal("a run without a bank keeps no steps; asked for step {}", step); }

absl::Status NoBank::Publish(const std::string& checkpoint_id, const std::string& version, PayloadType payload) {
  return FailedPrecondition("checkpoint {} is of a run without a bank: there is nothing to publish", checkpoint_id);
}

}  // namespace membank
