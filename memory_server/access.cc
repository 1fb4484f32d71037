#include "memory_server/access.h"

#include <algorithm>
#include <filesystem>

#include "common/base/json.h"
#include "common/base/log.h"
#include "common/base/status_macros.h"
#include "memory_server/checked_json.h"

namespace membank {
namespace {

constexpr struct {
  const char* rpc;
  CallRole role;
} kRoles[] = {
    {"GetManifest", CallRole::kEverybody},
    {"FetchBlocks", CallRole::kEverybody},     // and each block by the access table
    {"PushGradients", CallRole::kTrainer},     // and each block by the access table
    {"Prefetch", CallRole::kTrainer},          // brings blocks into the server's memory, sends none
    {"BeginRun", CallRole::kTrainer},
    {"PrepareStep", CallRole::kTrainer},
    {"ApplyStep", CallRole::kTrainer},
    {"JoinRun", CallRole::kTrainer},
    {"AwaitStep", CallRole::kTrainer},
    {"Checkpoint", CallRole::kTrainer},
    {"Publish", CallRole::kAdministrator},
    {"ReadCheckpoint", CallRole::kAdministrator},   // holds every block, whoever owns it
    {"WriteCheckpoint", CallRole::kAdministrator},
    {"GetSlots", CallRole::kAdministrator},    // and the servers that copy from this one
    {"ExportSlots", CallRole::kAdministrator},
    {"MoveSlots", CallRole::kAdministrator},
    {"GetAccess", CallRole::kEverybody},
    {"SetAccess", CallRole::kEverybody},       // each change by the access table
    {"PurgeBlocks", CallRole::kEverybody},     // the prefix by the access table
};

bool IsOneOf(const Caller& caller, const std::set<std::string>& names) {
  return std::any_of(caller.names.begin(), caller.names.end(), [&](const std::string& name) { return names.contains(name); });
}

bool Is(const Caller& caller, const std::string& name) { return std::find(caller.names.begin(), caller.names.end(), name) != caller.names.end(); }

}  // namespace

std::string ToString(const Caller& caller) {
  return caller.names.empty() ? "an anonymous caller" : fmt::format("the caller '{}'", fmt::join(caller.names, "', '"));
}

CallRole RoleOf(const std::string& rpc) {
  for (const auto& row : kRoles) {
    if (row.rpc == rpc) return row.role;
  }
  return CallRole::kAdministrator;
}

absl::StatusOr<std::unique_ptr<AccessControl>> AccessControl::Open(const std::string& data_directory, uint32_t fan_out, uint32_t depth,
                                                                   const AccessOptions& options) {
  const std::string path = data_directory + "/access.json";
  std::unique_ptr<AccessControl> control(new AccessControl(path, fan_out, depth, options));
  if (!std::filesystem::exists(path)) return control;
  const absl::StatusOr<nlohmann::json> json = ReadCheckedJson(path);
  absl::StatusOr<AccessTable> table = json.ok() ? AccessTable::FromJson(json->dump()) : json.status();
  if (table.ok()) {
    if (const absl::Status valid = table->Validate(fan_out, depth); !valid.ok()) table = valid;
  }
  if (!table.ok()) return DataLoss("{} is damaged: {}; copy it from another server of the bank", path, std::string(table.status().message()));
  absl::MutexLock lock(&control->mu_);
  control->table_ = std::make_shared<AccessTable>(*std::move(table));
  return control;
}

std::shared_ptr<const AccessTable> AccessControl::table() const {
  absl::MutexLock lock(&mu_);
  return table_;
}

absl::Status AccessControl::CheckCall(const Caller& caller, const std::string& rpc) const {
  const bool administrator = options_.administrators.empty() || IsOneOf(caller, options_.administrators);
  switch (RoleOf(rpc)) {
    case CallRole::kEverybody: return absl::OkStatus();
    case CallRole::kTrainer:
      if (options_.trainers.empty() || IsOneOf(caller, options_.trainers) || IsOneOf(caller, options_.administrators)) return absl::OkStatus();
      return PermissionDenied("{} is for the identities of --trainers and --administrators; {} is none of them", rpc, ToString(caller));
    case CallRole::kAdministrator:
      if (administrator) return absl::OkStatus();
      return PermissionDenied("{} is for the identities of --administrators; {} is none of them", rpc, ToString(caller));
  }
  return Internal("{} has no role", rpc);
}

absl::Status AccessControl::CheckFetch(const AccessTable& table, const Caller& caller, BlockId id) const {
  if (table.rules.empty()) return absl::OkStatus();
  const AccessRule* rule = table.OwnerRule(id, fan_out_);
  if (rule == nullptr || Is(caller, rule->owner) || IsOneOf(caller, rule->readers)) return absl::OkStatus();
  return PermissionDenied("block {} is owned; {} is neither its owner nor one of its readers", ToString(id), ToString(caller));
}

absl::Status AccessControl::CheckPush(const AccessTable& table, const Caller& caller, BlockId id) const {
  if (table.rules.empty()) return absl::OkStatus();
  const AccessRule* rule = table.OwnerRule(id, fan_out_);
  if (rule != nullptr && !Is(caller, rule->owner)) return PermissionDenied("block {} is owned; {} is not its owner and may not train it", ToString(id), ToString(caller));
  if (IsBlocked(table, id)) return FailedPrecondition("block {} is blocked and takes no gradients; unblock its prefix or leave it out of training", ToString(id));
  return absl::OkStatus();
}

absl::Status AccessControl::CheckPurge(const Caller& caller, TreePrefix prefix) const {
  RETURN_IF_ERROR(CheckPrefix(prefix, fan_out_, depth_));
  const std::shared_ptr<const AccessTable> table = this->table();
  RETURN_IF_ERROR(CheckControls(*table, caller, prefix));
  if (table->IsBlocked(prefix, fan_out_)) return absl::OkStatus();
  return FailedPrecondition("prefix {} is not blocked; block it before it is purged", ToString(prefix, fan_out_));
}

// Administrators control everything, an owner what lies below his prefix, everybody what nobody owns when there are no administrators. Whoever
// is no administrator does not reach through a prefix to what another one owns below it, unless he owns the prefix itself.
absl::Status AccessControl::CheckControls(const AccessTable& table, const Caller& caller, TreePrefix prefix) const {
  if (IsOneOf(caller, options_.administrators)) return absl::OkStatus();
  const std::string where = ToString(prefix, fan_out_);
  const auto root = table.rules.find(TreePrefix());
  const AccessRule* rule = prefix.level > 0 ? table.OwnerRule({prefix.level, prefix.cluster}, fan_out_)
                           : root != table.rules.end() && !root->second.owner.empty() ? &root->second : nullptr;
  if (rule != nullptr) {
    if (Is(caller, rule->owner)) return absl::OkStatus();
    return PermissionDenied("prefix {} is owned; {} is neither its owner nor one of --administrators", where, ToString(caller));
  }
  if (!options_.administrators.empty()) return PermissionDenied("prefix {} has no owner; {} is none of --administrators", where, ToString(caller));
  for (const auto& [below, other] : table.rules) {
    if (below.level == 0 || other.owner.empty() || Is(caller, other.owner)) continue;
    if (prefix.Covers({below.level, below.cluster}, fan_out_)) {
      return PermissionDenied("prefix {} holds {}, which is owned; {} is not its owner", where, ToString(below, fan_out_), ToString(caller));
    }
  }
  return absl::OkStatus();
}

absl::Status AccessControl::Replace(const Caller& caller, const AccessTable& next) {
  RETURN_IF_ERROR(next.Validate(fan_out_, depth_));
  absl::MutexLock change(&change_mu_);
  const std::shared_ptr<const AccessTable> now = table();
  if (next == *now) return absl::OkStatus();
  if (next.epoch <= now->epoch) {
    return Aborted("the access table is at epoch {} already, the change would make it {}; read it again and repeat the change", now->epoch,
                   next.epoch);
  }
  std::set<TreePrefix> changed;
  for (const auto& [prefix, rule] : now->rules) changed.insert(prefix);
  for (const auto& [prefix, rule] : next.rules) changed.insert(prefix);
  const auto rule_of = [](const AccessTable& table, TreePrefix prefix) {
    const auto it = table.rules.find(prefix);
    return it == table.rules.end() ? AccessRule() : it->second;
  };
  std::erase_if(changed, [&](TreePrefix prefix) { return rule_of(*now, prefix) == rule_of(next, prefix); });
  for (const TreePrefix prefix : changed) RETURN_IF_ERROR(CheckControls(*now, caller, prefix));
  RETURN_IF_ERROR(WriteCheckedJson(path_, *ParseJson(next.ToJson())));
  for (const TreePrefix prefix : changed) {
    const AccessRule rule = rule_of(next, prefix);
    LOG_INFO("access epoch {}: {} sets prefix {}: owner '{}', {} readers{}", next.epoch, ToString(caller), ToString(prefix, fan_out_), rule.owner,
             rule.readers.size(), rule.blocked ? ", blocked" : "");
  }
  absl::MutexLock lock(&mu_);
  table_ = std::make_shared<AccessTable>(next);
  return absl::OkStatus();
}

absl::Status AccessControl::Follow(const AccessTable& next) {
  RETURN_IF_ERROR(next.Validate(fan_out_, depth_));
  absl::MutexLock change(&change_mu_);
  if (next.epoch <= table()->epoch) return absl::OkStatus();
  RETURN_IF_ERROR(WriteCheckedJson(path_, *ParseJson(next.ToJson())));
  absl::MutexLock lock(&mu_);
  table_ = std::make_shared<AccessTable>(next);
  return absl::OkStatus();
}

}  // namespace membank
