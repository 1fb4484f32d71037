// Purging prefixes: their bytes leave memory and every file of this server (promise P6). See shard.h. <data>/purge.json lists the prefixes from
// before the first change until after the last one; whoever finds it does all of it again, which changes nothing where it was done.
#include <unistd.h>

#include <algorithm>
#include <filesystem>

#include "common/base/fail_point.h"
#include "common/base/file.h"
#include "common/base/log.h"
#include "common/base/status_macros.h"
#include "memory_server/block_record.h"
#include "memory_server/checked_json.h"
#include "memory_server/shard.h"
#include "memory_server/shard_state.h"
#include "nlohmann/json.hpp"

namespace membank {
namespace {

using Json = nlohmann::json;

constexpr char kPurgeFile[] = "/purge.json";  // {"prefixes": [[level, cluster], ...]}

absl::StatusOr<std::vector<TreePrefix>> ReadPurges(const std::string& data_directory, const BankSpec& spec) {
  const std::string path = data_directory + kPurgeFile;
  std::vector<TreePrefix> prefixes;
  if (!std::filesystem::exists(path)) return prefixes;
  ASSIGN_OR_RETURN(const Json file, ReadCheckedJson(path));
  const Json json = file.value("prefixes", Json());
  const auto is_number = [](const Json& value) { return value.is_number_unsigned() && value.get<uint64_t>() <= UINT32_MAX; };
  bool valid = json.is_array();
  for (size_t i = 0; valid && i < json.size(); ++i) {
    valid = json[i].is_array() && json[i].size() == 2 && is_number(json[i][0]) && is_number(json[i][1]);
    if (!valid) break;
    prefixes.push_back({json[i][0].get<uint32_t>(), json[i][1].get<uint32_t>()});
    valid = CheckPrefix(prefixes.back(), spec.fan_out, spec.depth()).ok();
  }
  if (valid) return prefixes;
  return DataLoss("{} is damaged; remove it, start again and purge again what was being purged (the log of purges says what)", path);
}

absl::Status WritePurges(const std::string& data_directory, const std::vector<TreePrefix>& prefixes) {
  Json json = Json::array();
  for (const TreePrefix prefix : prefixes) json.push_back({prefix.level, prefix.cluster});
  return WriteCheckedJson(data_directory + kPurgeFile, {{"prefixes", json}});
}

absl::Status RemovePurges(const std::string& data_directory) {
  const std::string path = data_directory + kPurgeFile;
  if (::unlink(path.c_str()) != 0) return absl::ErrnoToStatus(errno, "remove " + path);
  return SyncDirectory(data_directory);
}

// The keys of the blocks below the prefixes, level by level; of the root with the generic blocks.
std::vector<KeyRange> RangesOf(const std::vector<TreePrefix>& prefixes, const BankSpec& spec) {
  std::vector<KeyRange> ranges;
  for (const TreePrefix prefix : prefixes) {
    for (uint32_t level = std::max(1u, prefix.level); level <= spec.depth(); ++level) {
      const uint32_t below = ClusterCount(spec.fan_out, level - prefix.level), generic = prefix.level == 0 ? 1 : 0;
      const uint32_t first = prefix.cluster * below;
      ranges.push_back({BlockKey({level, first}), BlockKey({level, first + below + generic})});
    }
  }
  return ranges;
}

std::function<bool(BlockId)> CoveredBy(const std::vector<TreePrefix>& prefixes, uint32_t fan_out) {
  return [&prefixes, fan_out](BlockId id) {
    return std::any_of(prefixes.begin(), prefixes.end(), [&](TreePrefix prefix) { return prefix.Covers(id, fan_out); });
  };
}

}  // namespace

absl::StatusOr<PurgeResult> Shard::Purge(TreePrefix prefix) {
  RETURN_IF_ERROR(CheckPrefix(prefix, spec_.fan_out, spec_.depth()));
  const std::string name = ToString(prefix, spec_.fan_out);
  absl::MutexLock transfer(&transfer_mu_);
  reader_.reset();  // they hold files open; whoever copies a checkpoint begins anew
  writer_.reset();
  absl::MutexLock cut_lock(&cut_mu_);
  RETURN_IF_ERROR(AwaitCutsThawed());
  SetSnapshot(nullptr);  // before train_mu_: the step that holds it may be waiting for the room of images that nobody will write
  absl::MutexLock train(&train_mu_);
  {
    absl::MutexLock lock(&run_mu_);
    if (stopping_) return Unavailable("server \"{}\" is shutting down", options_.server_id);
    EndRun();  // pushes on their way may hold gradients of the prefix
  }
  ASSIGN_OR_RETURN(std::vector<TreePrefix> prefixes, ReadPurges(options_.data_directory, spec_));  // of purges that failed
  prefixes.push_back(prefix);
  RETURN_IF_ERROR(WritePurges(options_.data_directory, prefixes));
  LOG_INFO("purging prefix {}", name);
  MEMBANK_FAIL_POINT("purge.begun");
  absl::StatusOr<PurgeResult> result = PurgeEverywhere(prefixes);
  if (!result.ok())
    return Annotate(result.status(), fmt::format("the purge of prefix {} is not complete on server \"{}\", repeat it; a restart finishes it, too", name,
                                                 options_.server_id));
  MEMBANK_FAIL_POINT("purge.everywhere");
  RETURN_IF_ERROR(RemovePurges(options_.data_directory));
  LOG_INFO("purged prefix {}: {} trained blocks; {} checkpoints and versions are free of it", name, result->blocks, result->cuts);
  return result;
}

absl::StatusOr<PurgeResult> Shard::PurgeEverywhere(const std::vector<TreePrefix>& prefixes) {
  const std::vector<KeyRange> ranges = RangesOf(prefixes, spec_);
  const std::function<bool(BlockId)> covered = CoveredBy(prefixes, spec_.fan_out);
  PurgeResult result;
  ASSIGN_OR_RETURN(result.blocks, table_->Purge(covered, [&](const HeadStores& stores) -> absl::Status {
    for (const KeyRange& range : ranges) {
      RETURN_IF_ERROR(stores.weights->Erase(range.first, range.last));
      RETURN_IF_ERROR(stores.state->Erase(range.first, range.last));
    }
    return absl::OkStatus();
  }));
  MEMBANK_FAIL_POINT("purge.head");
  RETURN_IF_ERROR(step_log_->Purge(covered));
  ASSIGN_OR_RETURN(result.cuts, checkpoints_->Purge(ranges));
  version_payloads_.Clear();
  buffers_->Forget();
  return result;
}

// At a start, before anything is loaded.
absl::Status Shard::FinishPurges() {
  ASSIGN_OR_RETURN(const std::vector<TreePrefix> prefixes, ReadPurges(options_.data_directory, spec_));
  if (prefixes.empty()) return absl::OkStatus();
  for (const TreePrefix prefix : prefixes) LOG_WARN("finishing the purge of prefix {}, which was interrupted", ToString(prefix, spec_.fan_out));
  ASSIGN_OR_RETURN(const std::unique_ptr<StepLog> log, StepLog::Open(options_.data_directory + "/steps", spec_hash_));
  RETURN_IF_ERROR(log->Purge(CoveredBy(prefixes, spec_.fan_out)));
  RETURN_IF_ERROR(checkpoints_->Purge(RangesOf(prefixes, spec_)).status());
  return RemovePurges(options_.data_directory);
}

}  // namespace membank
