#include "common/base/json.h"

#include <algorithm>

#include "common/base/status_macros.h"

namespace membank {
namespace {

// The parser quotes what it read last, whatever bytes and however many these are: not for a log or a status as they are.
std::string Quotable(std::string_view message) {
  constexpr size_t kMost = 400;
  std::string quotable;
  for (const char c : message.substr(0, kMost)) {
    if (c >= 0x20 && c < 0x7f) quotable += c;
    else quotable += fmt::format("\\x{:02x}", static_cast<uint8_t>(c));
  }
  return message.size() > kMost ? quotable + "..." : quotable;
}

}  // namespace

int JsonDepth(std::string_view text) {
  int depth = 0, deepest = 0;
  bool in_string = false;
  for (size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (in_string) {
      if (c == '\\') ++i;
      else if (c == '"') in_string = false;
    } else if (c == '"') {
      in_string = true;
    } else if (c == '[' || c == '{') {
      deepest = std::max(deepest, ++depth);
    } else if (c == ']' || c == '}') {
      --depth;
    }
  }
  return deepest;
}

absl::StatusOr<nlohmann::json> ParseJson(std::string_view text) {
  if (const int depth = JsonDepth(text); depth > kMaxJsonDepth) {
    return InvalidArgument("lists and objects nest {} deep; at most {} are allowed", depth, kMaxJsonDepth);
  }
  try {
    return nlohmann::json::parse(text);
  } catch (const nlohmann::json::exception& error) {
    return InvalidArgument("{}", Quotable(error.what()));
  }
}

absl::StatusOr<nlohmann::json> ParseJsonObject(std::string_view text, std::string_view where) {
  absl::StatusOr<nlohmann::json> json = ParseJson(text);
  if (!json.ok()) return InvalidArgument("{} is not a JSON object: {}", where, std::string(json.status().message()));
  if (!json->is_object()) return InvalidArgument("{} is not a JSON object but a JSON {}", where, json->type_name());
  return json;
}

}  // namespace membank
