// How the ranks of a run meet and follow each other. See shard.h; shard_training.cc has runs, pushes and steps.
#include "common/base/status_macros.h"
#include "memory_server/shard.h"
#include "memory_server/shard_state.h"

namespace membank {
namespace {

constexpr size_t kMaxDescriptionBytes = 64 << 10;

absl::Status CheckMember(const RunMember& member) {
  if (member.rank >= member.world_size)
    return InvalidArgument("rank {} of {} is not in a run, allowed ranks 0..world size - 1", member.rank, member.world_size);
  if (member.member_id.empty() || member.member_id.size() > 128)
    return InvalidArgument("member id of rank {} has {} characters, allowed 1..128", member.rank, member.member_id.size());
  if (member.description.size() > kMaxDescriptionBytes)
    return InvalidArgument("the description of run {} has {} bytes, allowed 0..{}", member.run_id, member.description.size(), kMaxDescriptionBytes);
  return absl::OkStatus();
}

}  // namespace

// What a rank above 0 waits for in JoinRun; empty: nothing.
std::string Shard::WhyNotJoined(const RunMember& member) const {
  if (!run_active_) return "no run is active";
  const std::string run = fmt::format("run {} epoch {}", run_.run_id, run_.epoch);
  if (run_.world_size != member.world_size) return fmt::format("{} has {} ranks", run, run_.world_size);
  if (members_[0].empty()) return fmt::format("rank 0 of {} is still beginning it", run);
  const std::string& there = members_[member.rank];
  if (!there.empty() && there != member.member_id) return fmt::format("rank {} of {} is there already", member.rank, run);
  return "";
}

absl::StatusOr<JoinedRun> Shard::JoinRun(const RunMember& member, absl::Time deadline) {
  RETURN_IF_ERROR(CheckMember(member));
  absl::MutexLock lock(&run_mu_);
  if (member.rank == 0) {
    RETURN_IF_ERROR(CheckRun({member.run_id, member.epoch, 0}));
    if (member.world_size != run_.world_size)
      return InvalidArgument("run {} was begun with {} ranks, rank 0 joins with {}", run_.run_id, run_.world_size, member.world_size);
    if (!members_[0].empty() && members_[0] != member.member_id)
      return Aborted("rank 0 of run {} epoch {} is there already; begin a larger epoch", run_.run_id, run_.epoch);
    run_description_ = member.description;
  } else {
    const auto decided = [&]() ABSL_SHARED_LOCKS_REQUIRED(run_mu_) { return stopping_ || WhyNotJoined(member).empty(); };
    if (!run_mu_.AwaitWithDeadline(absl::Condition(&decided), deadline))
      return DeadlineExceeded("rank {} of {} waits on server \"{}\" for rank 0 to begin a new epoch: {}; start all ranks together", member.rank,
                              member.world_size, options_.server_id, WhyNotJoined(member));
    if (stopping_) return Unavailable("server \"{}\" is shutting down", options_.server_id);
  }
  members_[member.rank] = member.member_id;
  return JoinedRun{run_.run_id, run_.epoch, run_description_};
}

absl::StatusOr<std::vector<double>> Shard::AwaitStep(const StepId& step, absl::Time deadline) {
  absl::MutexLock lock(&run_mu_);
  const auto decided = [&]() ABSL_SHARED_LOCKS_REQUIRED(run_mu_) { return !CheckRun(step).ok() || head_step_ >= step.step; };
  const bool in_time = run_mu_.AwaitWithDeadline(absl::Condition(&decided), deadline);
  RETURN_IF_ERROR(CheckRun(step));
  if (!in_time)
    return DeadlineExceeded("step {} of run {} was not applied within the deadline on server \"{}\": {}", step.step, step.run_id,
                            options_.server_id, WhyHeadWaits());
  return head_step_ == step.step ? head_sums_ : std::vector<double>();
}

}  // namespace membank
