#include "common/bank/block.h"

#include <charconv>
#include <string_view>

#include "common/base/status_macros.h"

namespace membank {

std::string ToString(BlockId id) { return fmt::format("{}/{}", id.level, id.cluster); }

uint32_t ClusterCount(uint32_t fan_out, uint32_t level) {
  uint32_t count = 1;
  for (uint32_t l = 0; l < level; ++l) count *= fan_out;
  return count;
}

uint32_t ClusterAt(const BlockPath& path, uint32_t fan_out, uint32_t level) {
  return path.leaf / ClusterCount(fan_out, path.depth - level);
}

std::string ToString(const BlockPath& path, uint32_t fan_out) {
  if (path.mode == MemoryMode::kNone) return "none";
  if (path.mode == MemoryMode::kGeneric) return "generic";
  std::string text;
  for (uint32_t level = 1; level <= path.depth; ++level) {
    if (level > 1) text += '.';
    text += std::to_string(ClusterAt(path, fan_out, level) % fan_out);
  }
  return text;
}

absl::StatusOr<BlockPath> ParsePath(const std::string& text, uint32_t fan_out, uint32_t depth) {
  if (text == "none") return BlockPath{MemoryMode::kNone, depth, 0};
  if (text == "generic") return BlockPath{MemoryMode::kGeneric, depth, 0};
  const auto bad = [&](std::string_view reason) {
    return InvalidArgument("path \"{}\" {}; allowed: \"none\", \"generic\", or {} numbers 0..{} joined by dots, such as \"{}\"", text, reason,
                           depth, fan_out - 1, ToString(BlockPath{MemoryMode::kFetched, depth, 0}, fan_out));
  };
  BlockPath path{MemoryMode::kFetched, depth, 0};
  std::string_view rest = text;
  for (uint32_t level = 1; level <= depth; ++level) {
    uint32_t child = 0;
    const auto [end, error] = std::from_chars(rest.data(), rest.data() + rest.size(), child);
    if (error == std::errc::result_out_of_range) return bad("has a number that is too large");
    if (error != std::errc()) return bad("lacks a number");
    if (child >= fan_out) return bad(fmt::format("has {} at level {}", child, level));
    rest.remove_prefix(end - rest.data());
    path.leaf = path.leaf * fan_out + child;
    if (level == depth) break;
    if (rest.empty()) return bad(fmt::format("ends at level {}", level));
    if (rest.front() != '.') return bad(fmt::format("has '{}' where a dot belongs", rest.front()));
    rest.remove_prefix(1);
  }
  if (!rest.empty()) return bad("is too long");
  return path;
}

}  // namespace membank
