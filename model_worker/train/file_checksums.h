// Sizes and CRC32C of the files that a trainer keeps beside a checkpoint, written into its manifest and compared before they are used (promise
// P4: no silent wrong numbers). Any thread.
#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "nlohmann/json.hpp"

namespace membank {

// Of every file below `directory` but its manifest: {"<path below it>": {"bytes": N, "crc32c": "<8 hex digits>"}}. Reads all bytes.
absl::StatusOr<nlohmann::json> ChecksumFiles(const std::string& directory);

// What differs from `recorded`, a line for each file that is missing or has another size or checksum. Reads all bytes of recorded files.
std::vector<std::string> DamagedFiles(const std::string& directory, const nlohmann::json& recorded);

}  // namespace membank
