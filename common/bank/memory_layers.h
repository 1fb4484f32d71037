// Which layers of the anchor get memory (mission/paper.md section 6: uniform or late is good, early is bad). Pure functions.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

namespace membank {

// "all", "early" (the first half), "late" (the last half), or numbers from 0 joined by commas. The halves of an odd number of layers share the
// middle one, so that early and late banks have one size. The result is BankSpec::memory_layers: ascending, empty when it is all layers.
// INVALID_ARGUMENT says what is allowed.
absl::StatusOr<std::vector<uint32_t>> ParseMemoryLayers(std::string_view text, uint32_t layers);

std::string MemoryLayersText(const std::vector<uint32_t>& memory_layers);  // "all" or "4,5,6,7"

}  // namespace membank
