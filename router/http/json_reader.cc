#include "router/http/json_reader.h"

#include "common/base/json.h"
#include "common/base/status_macros.h"
#include "router/http/http_error.h"

namespace membank {

absl::StatusOr<nlohmann::json> ParseJsonObject(const std::string& text) {
  absl::StatusOr<nlohmann::json> body = ParseJson(text);
  if (!body.ok()) return InvalidArgument("the body is not JSON: {}", std::string(body.status().message()));
  if (!body->is_object()) return InvalidArgument("the body is a JSON {}; an object is expected", body->type_name());
  return body;
}

const nlohmann::json* JsonReader::Find(const std::string& name) const {
  const auto found = object_.find(name);
  return found == object_.end() || found->is_null() ? nullptr : &*found;
}

absl::Status JsonReader::WrongType(const std::string& name, const std::string& expected) const {
  const nlohmann::json* value = Find(name);
  return ParamError(prefix_ + name, fmt::format("{}{} is a {}; {} is expected", prefix_, name, value ? value->type_name() : "null", expected));
}

absl::Status JsonReader::Read(const std::string& name, bool* value) const {
  const nlohmann::json* found = Find(name);
  if (found == nullptr) return absl::OkStatus();
  if (!found->is_boolean()) return WrongType(name, "true or false");
  *value = found->get<bool>();
  return absl::OkStatus();
}

absl::Status JsonReader::Read(const std::string& name, std::string* value) const {
  const nlohmann::json* found = Find(name);
  if (found == nullptr) return absl::OkStatus();
  if (!found->is_string()) return WrongType(name, "a string");
  *value = found->get<std::string>();
  return absl::OkStatus();
}

absl::Status JsonReader::Read(const std::string& name, double min, double max, double* value) const {
  const nlohmann::json* found = Find(name);
  if (found == nullptr) return absl::OkStatus();
  const std::string expected = fmt::format("a number from {} to {}", min, max);
  if (!found->is_number()) return WrongType(name, expected);
  const double number = found->get<double>();
  if (!(number >= min && number <= max)) return ParamError(prefix_ + name, fmt::format("{}{} is {}; {} is expected", prefix_, name, number, expected));
  *value = number;
  return absl::OkStatus();
}

absl::Status JsonReader::Read(const std::string& name, int64_t min, int64_t max, int64_t* value) const {
  const nlohmann::json* found = Find(name);
  if (found == nullptr) return absl::OkStatus();
  const std::string expected = fmt::format("an integer from {} to {}", min, max);
  if (!found->is_number_integer()) return WrongType(name, expected);
  const bool too_large = found->is_number_unsigned() && found->get<uint64_t>() > static_cast<uint64_t>(INT64_MAX);
  const int64_t number = too_large ? INT64_MAX : found->get<int64_t>();
  if (too_large || number < min || number > max) {
    return ParamError(prefix_ + name, fmt::format("{}{} is {}; {} is expected", prefix_, name, found->dump(), expected));
  }
  *value = number;
  return absl::OkStatus();
}

absl::Status JsonReader::Read(const std::string& name, size_t max, std::vector<std::string>* values) const {
  const nlohmann::json* found = Find(name);
  if (found == nullptr) return absl::OkStatus();
  const std::string expected = fmt::format("a string or a list of at most {} strings", max);
  if (found->is_string()) {
    *values = {found->get<std::string>()};
    return absl::OkStatus();
  }
  if (!found->is_array()) return WrongType(name, expected);
  if (found->size() > max) return ParamError(prefix_ + name, fmt::format("{}{} has {} entries; {} is expected", prefix_, name, found->size(), expected));
  values->clear();
  for (const nlohmann::json& entry : *found) {
    if (!entry.is_string()) return ParamError(prefix_ + name, fmt::format("{}{} holds a {}; {} is expected", prefix_, name, entry.type_name(), expected));
    values->push_back(entry.get<std::string>());
  }
  return absl::OkStatus();
}

}  // namespace membank
