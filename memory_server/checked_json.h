// The small JSON files that say what counts: manifests, commit marks, run epochs. Each is an object that carries a checksum of itself as member
// "crc32c", the CRC32C of its other members as compact text with ascending keys; a flipped bit is DATA_LOSS and never another step or epoch.
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "nlohmann/json.hpp"

namespace membank {

// The object's text with its checksum.
std::string SealJson(nlohmann::json object);
// Durable and atomic, as WriteFileAtomic.
absl::Status WriteCheckedJson(const std::string& path, const nlohmann::json& object);
// Without the checksum. DATA_LOSS names the file; an error of the file system stays what it is.
absl::StatusOr<nlohmann::json> ReadCheckedJson(const std::string& path);

}  // namespace membank
