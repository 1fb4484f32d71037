#include "common/bank/tree_prefix.h"

#include <algorithm>

#include "common/base/status_macros.h"

namespace membank {

bool TreePrefix::Covers(BlockId id, uint32_t fan_out) const {
  if (level == 0) return true;
  if (id.level < level || id.cluster >= ClusterCount(fan_out, id.level)) return false;
  return id.cluster / ClusterCount(fan_out, id.level - level) == cluster;
}

std::string ToString(TreePrefix prefix, uint32_t fan_out) {
  if (prefix.level == 0) return "root";
  return ToString(BlockPath{MemoryMode::kFetched, prefix.level, prefix.cluster}, fan_out);
}

absl::StatusOr<TreePrefix> ParsePrefix(const std::string& text, uint32_t fan_out, uint32_t depth) {
  if (text == "root") return TreePrefix();
  const uint32_t level = 1 + static_cast<uint32_t>(std::count(text.begin(), text.end(), '.'));
  const absl::StatusOr<BlockPath> path =
      level <= depth ? ParsePath(text, fan_out, level) : absl::StatusOr<BlockPath>(absl::InvalidArgumentError(""));
  if (path.ok() && path->mode == MemoryMode::kFetched) return TreePrefix{level, path->leaf};
  return InvalidArgument("\"{}\" is no prefix of the tree; allowed: \"root\", or 1 to {} numbers 0..{} joined by dots, such as \"{}\"", text, depth,
                         fan_out - 1, ToString(TreePrefix{std::min(2u, depth), fan_out - 1}, fan_out));
}

absl::Status CheckPrefix(TreePrefix prefix, uint32_t fan_out, uint32_t depth) {
  if (prefix.level <= depth && prefix.cluster < ClusterCount(fan_out, prefix.level)) return absl::OkStatus();
  return InvalidArgument("prefix {}/{} is not in the tree; allowed: levels 0..{}, clusters 0..{}^level - 1", prefix.level, prefix.cluster, depth,
                         fan_out);
}

}  // namespace membank
