// Finds all tokens that a text begins with. Filled once, then immutable; any thread.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "absl/container/flat_hash_map.h"

namespace membank {

class PrefixTrie {
 public:
  PrefixTrie() : ids_(1, -1) {}

  void Insert(std::string_view spelling, int32_t id) {
    int32_t node = 0;
    for (char c : spelling) {
      const auto [child, inserted] = children_.emplace(Key(node, c), static_cast<int32_t>(ids_.size()));
      if (inserted) ids_.push_back(-1);
      node = child->second;
    }
    ids_[node] = id;
  }

  // Calls use(length, id) for each token that `text` begins with, the shortest first.
  template <typename Use>
  void ForEachPrefix(std::string_view text, const Use& use) const {
    int32_t node = 0;
    for (size_t i = 0; i < text.size(); ++i) {
      const auto child = children_.find(Key(node, text[i]));
      if (child == children_.end()) return;
      node = child->second;
      if (ids_[node] >= 0) use(i + 1, ids_[node]);
    }
  }

 private:
  static uint64_t Key(int32_t node, char c) { return static_cast<uint64_t>(node) << 8 | static_cast<uint8_t>(c); }

  absl::flat_hash_map<uint64_t, int32_t> children_;   // nodes by parent and byte
  std::vector<int32_t> ids_;                          // by node; -1: no token ends here
};

}  // namespace membank
