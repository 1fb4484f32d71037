// A part of a JSON object with its place in the file, for errors. A member that is absent or null takes its default.
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "common/base/status_macros.h"
#include "nlohmann/json.hpp"

namespace membank {

class JsonPart {
 public:
  using Json = nlohmann::json;
  JsonPart(const Json& json, std::string place) : json_(json), place_(std::move(place)) {}

  const Json& json() const { return json_; }
  const std::string& place() const { return place_; }
  bool Has(const char* key) const { return json_.is_object() && json_.contains(key) && !json_[key].is_null(); }
  JsonPart operator[](const char* key) const {
    static const Json null;
    return {Has(key) ? json_[key] : null, place_ + "." + key};
  }

  absl::StatusOr<bool> Bool(const char* key, bool absent) const {
    if (!Has(key)) return absent;
    if (json_[key].is_boolean()) return json_[key].get<bool>();
    return InvalidArgument("{}.{} is not true or false", place_, key);
  }
  absl::StatusOr<std::string> String(const char* key, const std::string& absent) const {
    if (!Has(key)) return absent;
    if (json_[key].is_string()) return json_[key].get<std::string>();
    return InvalidArgument("{}.{} is not a string", place_, key);
  }
  absl::StatusOr<int64_t> Int(const char* key, int64_t absent) const {
    if (!Has(key)) return absent;
    if (json_[key].is_number_integer()) return json_[key].get<int64_t>();
    return InvalidArgument("{}.{} is not a whole number", place_, key);
  }
  // For what membank supports in one form only: `key` must be absent, null or `only`.
  absl::Status Require(const char* key, const Json& only) const {
    if (!Has(key) || json_[key] == only) return absl::OkStatus();
    return Unimplemented("{}.{} is {}; supported is only {}", place_, key, json_[key].dump(-1, ' ', true, Json::error_handler_t::replace),
                         only.dump());
  }

 private:
  const Json& json_;
  std::string place_;
};

}  // namespace membank
