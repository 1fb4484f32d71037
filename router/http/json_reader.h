// Typed fields of a JSON object from a client. A missing field or null leaves the default; a wrong type or a value out of range is an
// INVALID_ARGUMENT that names the field (ParamError). Unknown fields are not looked at, as OpenAI's servers do. One thread.
#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "nlohmann/json.hpp"

namespace membank {

// INVALID_ARGUMENT for text that is no JSON object (the byte offset is named; invalid UTF-8 is refused here).
absl::StatusOr<nlohmann::json> ParseJsonObject(const std::string& text);

class JsonReader {
 public:
  // `prefix` goes in front of names in errors: "memory.".
  explicit JsonReader(const nlohmann::json& object, std::string prefix = "") : object_(object), prefix_(std::move(prefix)) {}

  bool Has(const std::string& name) const { return Find(name) != nullptr; }
  const nlohmann::json* Find(const std::string& name) const;  // nullptr when missing or null

  absl::Status Read(const std::string& name, bool* value) const;
  absl::Status Read(const std::string& name, std::string* value) const;
  absl::Status Read(const std::string& name, double min, double max, double* value) const;
  absl::Status Read(const std::string& name, int64_t min, int64_t max, int64_t* value) const;
  // A string or a list of at most `max` strings.
  absl::Status Read(const std::string& name, size_t max, std::vector<std::string>* values) const;

  absl::Status WrongType(const std::string& name, const std::string& expected) const;

 private:
  const nlohmann::json& object_;
  const std::string prefix_;
};

}  // namespace membank
