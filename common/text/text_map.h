// A table of numbers by spelling that is asked with pieces of a text, without copies.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <unordered_map>

namespace membank {

struct TextHash {
  using is_transparent = void;
  size_t operator()(std::string_view text) const;
};
using TokenMap = std::unordered_map<std::string, int32_t, TextHash, std::equal_to<>>;

// The number of a spelling, -1 when absent.
inline int32_t Lookup(const TokenMap& map, std::string_view spelling) {
  const auto found = map.find(spelling);
  return found == map.end() ? -1 : found->second;
}

}  // namespace membank
