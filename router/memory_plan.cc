#include "router/memory_plan.h"

#include <algorithm>
#include <map>
#include <set>

#include "common/base/status_macros.h"
#include "common/rpc/wire.h"

namespace membank {
namespace {

std::string NamesOf(const std::vector<PlannedBank>& banks) {
  std::string names;
  for (const PlannedBank& bank : banks) names += (names.empty() ? "" : ", ") + bank.name;
  return names;
}

// Its number; nothing when no bank is named so.
std::optional<size_t> Find(const std::string& name, const std::vector<PlannedBank>& banks) {
  for (size_t i = 0; i < banks.size(); ++i) {
    if (!name.empty() && banks[i].name == name) return i;
  }
  return std::nullopt;
}

absl::StatusOr<BlockPath> ExplicitPath(const std::string& field, const std::string& text, const PlannedBank& bank) {
  if (bank.depth == 0) return FailedPrecondition("{} '{}' cannot be used: no worker has a bank", field, text);
  absl::StatusOr<BlockPath> path = ParsePath(text, bank.fan_out, bank.depth);
  if (!path.ok()) return Annotate(path.status(), field);
  if (path->mode != MemoryMode::kFetched) {
    return InvalidArgument("{} is '{}'; it takes child numbers from the root, e.g. 3.5; for generic or none set memory.mode", field, text);
  }
  return path;
}

// Explicit paths by the number of their bank, with the names of their fields.
absl::StatusOr<std::map<size_t, std::pair<std::string, BlockPath>>> ExplicitPaths(const v1::MemoryOptions& memory,
                                                                                  const std::vector<PlannedBank>& banks) {
  std::map<size_t, std::pair<std::string, BlockPath>> paths;
  if (memory.source_case() == v1::MemoryOptions::kPath) {
    ASSIGN_OR_RETURN(const BlockPath path, ExplicitPath("memory.path", memory.path(), banks[0]));
    paths[0] = {"memory.path", path};
  }
  const std::map<std::string, std::string> by_name(memory.paths().begin(), memory.paths().end());
  for (const auto& [name, text] : by_name) {
    const std::string field = "memory.paths." + name;
    const std::optional<size_t> number = Find(name, banks);
    if (!number.has_value()) return InvalidArgument("{}: the banks served here are: {}", field, NamesOf(banks));
    if (paths.contains(*number)) return InvalidArgument("{} and memory.path are both paths of the first bank; give one of them", field);
    ASSIGN_OR_RETURN(const BlockPath path, ExplicitPath(field, text, banks[*number]));
    paths[*number] = {field, path};
  }
  return paths;
}

// The banks that memory.banks names; none named: none.
absl::StatusOr<std::set<size_t>> NamedBanks(const v1::MemoryOptions& memory, const std::vector<PlannedBank>& banks) {
  std::set<size_t> named;
  for (const std::string& name : memory.banks()) {
    const std::optional<size_t> number = Find(name, banks);
    if (!number.has_value()) return InvalidArgument("memory.banks names '{}'; the banks served here are: {}", name, NamesOf(banks));
    named.insert(*number);
  }
  return named;
}

absl::Status NoTree(const std::vector<PlannedBank>& banks, const PlannedBank& bank) {
  const bool any = std::any_of(banks.begin(), banks.end(), [](const PlannedBank& other) { return other.tree.has_value(); });
  if (!any) return FailedPrecondition("this router cannot find a path by text: it was started without --tree; give memory.path, or mode generic or none");
  return FailedPrecondition("this router cannot find a path in bank '{}' by text: it has no tree of it; give memory.paths.{}, or leave the bank out of "
                            "memory.banks", bank.name, bank.name);
}

}  // namespace

std::vector<PlannedBank> PlanBanks(const std::vector<v1::BankSpec>& told, const std::vector<TreeFacts>& trees) {
  std::vector<PlannedBank> banks;
  for (const v1::BankSpec& spec : told) {
    PlannedBank& bank = banks.emplace_back();
    bank.name = spec.bank_id();
    bank.fan_out = spec.fan_out();
    bank.depth = static_cast<uint32_t>(spec.widths_size());
    for (size_t i = 0; i < trees.size(); ++i) {
      if (trees[i].tree_fingerprint == spec.tree_fingerprint()) bank.tree = i;
    }
  }
  if (banks.empty()) banks.emplace_back();
  PlannedBank& first = banks[0];
  if (!first.tree.has_value() && !trees.empty()) first.tree = 0;  // not known yet, or a bank that names no tree
  if (first.tree.has_value()) {
    first.fan_out = trees[*first.tree].fan_out;
    first.depth = trees[*first.tree].depth;
  }
  return banks;
}

absl::StatusOr<std::vector<BankPlan>> PlanMemory(const v1::MemoryOptions& memory, const std::vector<PlannedBank>& banks) {
  std::vector<BankPlan> plans(banks.size());
  if (!memory.bank().empty() && memory.bank() != banks[0].name) {
    return FailedPrecondition("memory.bank is '{}'; the bank served here is '{}'", memory.bank(), banks[0].name);
  }
  ASSIGN_OR_RETURN(const std::set<size_t> named, NamedBanks(memory, banks));
  MemoryMode mode = MemoryMode::kFetched;
  if (memory.mode() != v1::MEMORY_MODE_UNSPECIFIED) {
    ASSIGN_OR_RETURN(mode, FromProto(memory.mode()));
  }
  if (mode != MemoryMode::kFetched) {
    if (memory.source_case() != v1::MemoryOptions::SOURCE_NOT_SET || !memory.paths().empty()) {
      return InvalidArgument("memory.path, memory.paths and memory.retrieve_on go with mode fetched only; leave them out or set mode fetched");
    }
    for (size_t i = 0; i < banks.size(); ++i) {
      if (named.empty() || named.contains(i)) plans[i].path.mode = mode;
    }
    return plans;
  }
  ASSIGN_OR_RETURN(const auto paths, ExplicitPaths(memory, banks));
  for (const auto& [number, path] : paths) {
    if (!named.empty() && !named.contains(number)) {
      return InvalidArgument("{} is a path of bank '{}', which memory.banks leaves out", path.first, banks[number].name);
    }
  }
  for (size_t i = 0; i < banks.size(); ++i) {
    const bool wanted = !named.empty() ? named.contains(i) : paths.empty() || paths.contains(i);
    if (!wanted) continue;
    if (const auto path = paths.find(i); path != paths.end()) {
      plans[i].path = path->second.second;
      continue;
    }
    if (!banks[i].tree.has_value()) {
      // Without a tree and a given path there is nothing to fetch by; nobody insists on it.
      if (memory.mode() == v1::MEMORY_MODE_UNSPECIFIED && named.empty() && memory.source_case() == v1::MemoryOptions::SOURCE_NOT_SET) continue;
      return NoTree(banks, banks[i]);
    }
    plans[i].path.mode = MemoryMode::kFetched;
    plans[i].by_text = true;
  }
  return plans;
}

}  // namespace membank
