// A prefix of the tree of topics: the node that a number of child choices leads to, and everything below it. "root" is the whole bank, "3"
// the fourth child of the root, "3.5" its sixth child. Generic blocks lie below no node but the root. Pure functions.
#pragma once

#include <compare>
#include <cstdint>
#include <string>

#include "absl/status/statusor.h"
#include "common/bank/block.h"

namespace membank {

struct TreePrefix {
  uint32_t level = 0;    // 0 = root
  uint32_t cluster = 0;

  auto operator<=>(const TreePrefix&) const = default;

  // Is the block this node's or below it?
  bool Covers(BlockId id, uint32_t fan_out) const;
};

std::string ToString(TreePrefix prefix, uint32_t fan_out);
// INVALID_ARGUMENT says what is allowed.
absl::StatusOr<TreePrefix> ParsePrefix(const std::string& text, uint32_t fan_out, uint32_t depth);
absl::Status CheckPrefix(TreePrefix prefix, uint32_t fan_out, uint32_t depth);

}  // namespace membank
