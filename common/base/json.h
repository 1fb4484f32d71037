// JSON from outside. nlohmann's values are copied, printed and compared by recursion, so that a few hundred kilobytes of '[' would overflow the
// stack; whatever nests deeper than our formats need is refused before it is built (tests/lint: nothing else parses JSON). Pure functions.
#pragma once

#include <string_view>

#include "absl/status/statusor.h"
#include "nlohmann/json.hpp"

namespace membank {

inline constexpr int kMaxJsonDepth = 64;

// INVALID_ARGUMENT says what is wrong and at which byte.
absl::StatusOr<nlohmann::json> ParseJson(std::string_view text);

// As above, of an object; `where` names the text in the error: "config.json is not a JSON object: parse error at line 3, column 5 ...".
absl::StatusOr<nlohmann::json> ParseJsonObject(std::string_view text, std::string_view where);

// Of text that is JSON: how deep its lists and objects nest.
int JsonDepth(std::string_view text);

}  // namespace membank
