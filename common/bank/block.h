// The domain's words: a block is (level, cluster) of a bank; a path is one block per level from the root's child to the leaf.
// Levels count from 1 as in the paper (section 2 of mission/paper.md); clusters of level l count from 0 to k^l - 1, and the parent of
// cluster c is c / k. Cluster k^l of level l is the *generic* block of that level: same size, never retrieved, the trained control.
#pragma once

#include <compare>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace membank {

struct BlockId {
  uint32_t level = 0;
  uint32_t cluster = 0;

  auto operator<=>(const BlockId&) const = default;
  template <typename H>
  friend H AbslHashValue(H h, const BlockId& id) {
    return H::combine(std::move(h), id.level, id.cluster);
  }
};

std::string ToString(BlockId id);  // "2/37"

// k^level; the number of clusters of a level and the cluster number of its generic block. Fits 32 bits (checked by BankSpec::Validate).
uint32_t ClusterCount(uint32_t fan_out, uint32_t level);
inline BlockId GenericBlock(uint32_t fan_out, uint32_t level) { return {level, ClusterCount(fan_out, level)}; }

// Which memory a sequence uses.
enum class MemoryMode : uint8_t { kNone = 0, kGeneric = 1, kFetched = 2 };

// The memory of one sequence: nothing, the generic blocks, or the path that ends in `leaf`, a cluster of level `depth`.
struct BlockPath {
  MemoryMode mode = MemoryMode::kNone;
  uint32_t depth = 0;  // levels of the tree
  uint32_t leaf = 0;

  auto operator<=>(const BlockPath&) const = default;
};

// The path's cluster at `level` (1..depth): leaf / k^(depth - level).
uint32_t ClusterAt(const BlockPath& path, uint32_t fan_out, uint32_t level);

// "3.17" style: child numbers from the root, e.g. fan-out 8, depth 2, leaf 29 -> "3.5"; "generic"; "none".
std::string ToString(const BlockPath& path, uint32_t fan_out);
absl::StatusOr<BlockPath> ParsePath(const std::string& text, uint32_t fan_out, uint32_t depth);

}  // namespace membank
