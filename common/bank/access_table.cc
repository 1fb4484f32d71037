#include "common/bank/access_table.h"

#include "common/base/json.h"
#include "common/base/status_macros.h"

namespace membank {
namespace {

using Json = nlohmann::json;

constexpr size_t kMaxRules = 65536, kMaxReaders = 1024, kMaxNameBytes = 512;

TreePrefix ParentAt(BlockId id, uint32_t level, uint32_t fan_out) { return {level, id.cluster / ClusterCount(fan_out, id.level - level)}; }

// The prefixes that cover a block, longest first.
template <typename Visit>
void ForEachCover(const std::map<TreePrefix, AccessRule>& rules, BlockId id, uint32_t fan_out, Visit visit) {
  const bool generic = id.cluster >= ClusterCount(fan_out, id.level);
  for (uint32_t level = generic ? 0 : id.level;; --level) {
    const auto it = rules.find(level == 0 ? TreePrefix() : ParentAt(id, level, fan_out));
    if (it != rules.end() && visit(it->second)) return;
    if (level == 0) return;
  }
}

absl::Status CheckName(const std::string& name, TreePrefix prefix) {
  if (!name.empty() && name.size() <= kMaxNameBytes) return absl::OkStatus();
  return InvalidArgument("access table: a name at prefix {}/{} has {} bytes; allowed: 1 to {}, as in a certificate's subject alternative name",
                         prefix.level, prefix.cluster, name.size(), kMaxNameBytes);
}

absl::StatusOr<uint64_t> NumberAt(const Json& json, const char* key, uint64_t high) {
  if (json.is_object() && json.contains(key) && json[key].is_number_unsigned() && json[key].get<uint64_t>() <= high) return json[key].get<uint64_t>();
  return InvalidArgument("access table: \"{}\" is missing or no whole number 0..{}", key, high);
}

absl::StatusOr<AccessRule> RuleFromJson(const Json& json) {
  AccessRule rule;
  const bool fits = json.contains("owner") && json["owner"].is_string() && json.contains("readers") && json["readers"].is_array() &&
                    json.contains("blocked") && json["blocked"].is_boolean();
  if (!fits) return InvalidArgument("access table: a rule lacks a string \"owner\", a list \"readers\" or a bool \"blocked\"");
  rule.owner = json["owner"].get<std::string>();
  rule.blocked = json["blocked"].get<bool>();
  for (const Json& reader : json["readers"]) {
    if (!reader.is_string()) return InvalidArgument("access table: a reader is no string");
    rule.readers.insert(reader.get<std::string>());
  }
  return rule;
}

}  // namespace

const AccessRule* AccessTable::OwnerRule(BlockId id, uint32_t fan_out) const {
  const AccessRule* found = nullptr;
  ForEachCover(rules, id, fan_out, [&](const AccessRule& rule) {
    if (!rule.owner.empty()) found = &rule;
    return found != nullptr;
  });
  return found;
}

bool AccessTable::IsBlocked(BlockId id, uint32_t fan_out) const {
  bool blocked = false;
  ForEachCover(rules, id, fan_out, [&](const AccessRule& rule) { return blocked = rule.blocked; });
  return blocked;
}

bool AccessTable::IsBlocked(TreePrefix prefix, uint32_t fan_out) const {
  if (prefix.level == 0) {
    const auto root = rules.find(prefix);
    return root != rules.end() && root->second.blocked;
  }
  return IsBlocked(BlockId{prefix.level, prefix.cluster}, fan_out);
}

void AccessTable::SetOwner(TreePrefix prefix, const std::string& owner, const std::set<std::string>& readers) {
  AccessRule& rule = rules[prefix];
  rule.owner = owner;
  rule.readers = readers;
  if (rule == AccessRule()) rules.erase(prefix);
}

void AccessTable::SetBlocked(TreePrefix prefix, bool blocked) {
  AccessRule& rule = rules[prefix];
  rule.blocked = blocked;
  if (rule == AccessRule()) rules.erase(prefix);
}

absl::Status AccessTable::Validate(uint32_t fan_out, uint32_t depth) const {
  if (rules.size() > kMaxRules) return InvalidArgument("access table: {} rules; at most {} are allowed", rules.size(), kMaxRules);
  for (const auto& [prefix, rule] : rules) {
    RETURN_IF_ERROR(CheckPrefix(prefix, fan_out, depth));
    const std::string where = ToString(prefix, fan_out);
    if (rule.owner.empty() && !rule.readers.empty()) return InvalidArgument("access table: prefix {} has readers but no owner", where);
    if (rule.readers.size() > kMaxReaders) {
      return InvalidArgument("access table: prefix {} has {} readers; at most {} are allowed", where, rule.readers.size(), kMaxReaders);
    }
    if (!rule.owner.empty()) RETURN_IF_ERROR(CheckName(rule.owner, prefix));
    for (const std::string& reader : rule.readers) RETURN_IF_ERROR(CheckName(reader, prefix));
  }
  return absl::OkStatus();
}

std::string AccessTable::ToJson() const {
  Json list = Json::array();
  for (const auto& [prefix, rule] : rules) {
    list.push_back({{"level", prefix.level}, {"cluster", prefix.cluster}, {"owner", rule.owner}, {"readers", rule.readers}, {"blocked", rule.blocked}});
  }
  return Json{{"epoch", epoch}, {"rules", std::move(list)}}.dump(1, ' ', false, Json::error_handler_t::replace);
}

absl::StatusOr<AccessTable> AccessTable::FromJson(const std::string& text) {
  ASSIGN_OR_RETURN(const Json json, ParseJson(text));
  AccessTable table;
  ASSIGN_OR_RETURN(table.epoch, NumberAt(json, "epoch", UINT64_MAX));
  if (!json.contains("rules") || !json["rules"].is_array()) return InvalidArgument("access table: \"rules\" is missing or no list");
  for (const Json& entry : json["rules"]) {
    TreePrefix prefix;
    ASSIGN_OR_RETURN(prefix.level, NumberAt(entry, "level", UINT32_MAX));
    ASSIGN_OR_RETURN(prefix.cluster, NumberAt(entry, "cluster", UINT32_MAX));
    ASSIGN_OR_RETURN(AccessRule rule, RuleFromJson(entry));
    if (!table.rules.emplace(prefix, std::move(rule)).second) {
      return InvalidArgument("access table: prefix {}/{} has two rules", prefix.level, prefix.cluster);
    }
  }
  return table;
}

}  // namespace membank
