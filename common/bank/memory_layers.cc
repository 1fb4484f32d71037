#include "common/bank/memory_layers.h"

#include <charconv>
#include <numeric>
#include <set>

#include "absl/strings/str_split.h"
#include "common/base/status_macros.h"
#include "fmt/ranges.h"

namespace membank {

absl::StatusOr<std::vector<uint32_t>> ParseMemoryLayers(std::string_view text, uint32_t layers) {
  const auto bad = [&](const std::string& reason) {
    return InvalidArgument("memory layers \"{}\": {}; allowed: all, early, late, or layers 0..{} joined by commas", text, reason, layers - 1);
  };
  const uint32_t half = (layers + 1) / 2;
  std::set<uint32_t> chosen;
  for (uint32_t layer = 0; layer < layers; ++layer)
    if (text == "all" || (text == "early" && layer < half) || (text == "late" && layer >= layers - half)) chosen.insert(layer);
  if (chosen.empty()) {
    for (const std::string& item : std::vector<std::string>(absl::StrSplit(absl::string_view(text.data(), text.size()), ','))) {
      uint32_t layer = 0;
      const auto [end, error] = std::from_chars(item.data(), item.data() + item.size(), layer);
      if (item.empty() || error != std::errc() || end != item.data() + item.size()) return bad(fmt::format("\"{}\" is no layer", item));
      if (layer >= layers) return bad(fmt::format("the anchor has no layer {}", layer));
      if (!chosen.insert(layer).second) return bad(fmt::format("layer {} is there twice", layer));
    }
  }
  if (chosen.size() == layers) chosen.clear();
  return std::vector<uint32_t>(chosen.begin(), chosen.end());
}

std::string MemoryLayersText(const std::vector<uint32_t>& memory_layers) {
  return memory_layers.empty() ? "all" : fmt::format("{}", fmt::join(memory_layers, ","));
}

}  // namespace membank
