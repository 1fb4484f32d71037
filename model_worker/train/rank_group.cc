#include "model_worker/train/rank_group.h"

#include "common/base/json.h"
#include "common/base/log.h"
#include "common/base/random_id.h"
#include "common/base/status_macros.h"

namespace membank {
namespace {

RunMember MakeMember(const TrainOptions& options) {
  return {options.rank, options.world_size, fmt::format("{:016x}", RandomId())};
}

}  // namespace

absl::Status AnnounceRun(const TrainOptions& options, const nlohmann::json& description, const StartPoint& start, MemoryClient& client) {
  RunMember member = MakeMember(options);
  member.run_id = start.identity.run_id;
  member.epoch = start.identity.epoch;
  const RunCheckpoint& from = start.checkpoint;
  member.description = nlohmann::json{{"run", description}, {"base_step", start.identity.base_step},
                                      {"checkpoint", {{"id", from.id}, {"step", from.step}, {"server_step", from.server_step}}}}.dump();
  return client.JoinRun(member, std::chrono::seconds(options.rank_timeout_seconds)).status();
}

absl::StatusOr<StartPoint> FollowRun(const TrainOptions& options, const nlohmann::json& description, MemoryClient& client) {
  LOG_INFO("rank {} of {} waits for rank 0", options.rank, options.world_size);
  ASSIGN_OR_RETURN(const JoinedRun joined, client.JoinRun(MakeMember(options), std::chrono::seconds(options.rank_timeout_seconds)));
  ASSIGN_OR_RETURN(const nlohmann::json said, ParseJson(joined.description));
  try {
    const absl::Status same = CompareRuns(said.at("run"), description, "which rank 0 is");
    if (!same.ok()) return Annotate(same, fmt::format("rank {} needs the settings of rank 0", options.rank));
    StartPoint start;
    start.identity = {joined.run_id, joined.epoch, said.at("base_step")};
    const nlohmann::json& from = said.at("checkpoint");
    start.checkpoint = {from.at("id"), from.at("step"), from.at("server_step"), description};
    start.step = start.checkpoint.step;
    return start;
  } catch (const nlohmann::json::exception& e) {
    return FailedPrecondition("rank 0 of run {} describes it in another way ({}); use the same release on all ranks", joined.run_id, e.what());
  }
}

}  // namespace membank
