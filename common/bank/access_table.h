// Who owns, reads and may see which prefixes of the tree. One table per bank, the same on every server; an admin call replaces it as a whole by one
// with a larger epoch. Identities are the subject alternative names (DNS or URI) of client certificates. The rule of the longest prefix that
// covers a block decides who may use it; a block is blocked when any prefix that covers it is. A plain value; any thread may read it.
#pragma once

#include <map>
#include <set>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "common/bank/tree_prefix.h"

namespace membank {

struct AccessRule {
  std::string owner;               // empty: nobody, i.e. everybody reads and writes
  std::set<std::string> readers;   // beside the owner
  bool blocked = false;            // nobody gets the blocks' bytes, not even the owner

  bool operator==(const AccessRule&) const = default;
};

struct AccessTable {
  uint64_t epoch = 0;                      // 0: never changed
  std::map<TreePrefix, AccessRule> rules;

  bool operator==(const AccessTable&) const = default;

  // The rule with an owner that decides about the block; nullptr: nobody owns it.
  const AccessRule* OwnerRule(BlockId id, uint32_t fan_out) const;
  bool IsBlocked(BlockId id, uint32_t fan_out) const;
  bool IsBlocked(TreePrefix prefix, uint32_t fan_out) const;  // the whole of it

  // What changes: an empty owner removes the ownership; rules that say nothing are removed.
  void SetOwner(TreePrefix prefix, const std::string& owner, const std::set<std::string>& readers);
  void SetBlocked(TreePrefix prefix, bool blocked);

  // INVALID_ARGUMENT: a prefix outside of the tree, too many rules or readers, names that are too long, readers without an owner.
  absl::Status Validate(uint32_t fan_out, uint32_t depth) const;

  std::string ToJson() const;
  static absl::StatusOr<AccessTable> FromJson(const std::string& json);  // INVALID_ARGUMENT names what is wrong
};

}  // namespace membank
