#include "memory_server/checked_json.h"

#include "common/base/crc32c.h"
#include "common/base/file.h"
#include "common/base/json.h"
#include "common/base/status_macros.h"

namespace membank {
namespace {

using Json = nlohmann::json;

constexpr char kChecksum[] = "crc32c";

uint32_t ChecksumOf(const Json& object) {
  // Bytes that are not UTF-8 come from damage only; replaced, so that they cannot throw.
  const std::string text = object.dump(-1, ' ', false, Json::error_handler_t::replace);
  return Crc32c(text.data(), text.size());
}

}  // namespace

std::string SealJson(Json object) {
  const uint32_t checksum = ChecksumOf(object);
  object[kChecksum] = checksum;
  return object.dump(1);
}

absl::Status WriteCheckedJson(const std::string& path, const Json& object) { return WriteFileAtomic(path, SealJson(object)); }

absl::StatusOr<Json> ReadCheckedJson(const std::string& path) {
  ASSIGN_OR_RETURN(const std::string text, ReadFile(path));
  absl::StatusOr<Json> parsed = ParseJsonObject(text, "it");
  if (!parsed.ok()) return DataLoss("{} is damaged: {}", path, std::string(parsed.status().message()));
  Json& object = *parsed;
  const auto stored = object.find(kChecksum);
  if (stored == object.end() || !stored->is_number_unsigned())
    return DataLoss("{} has no checksum \"{}\": it is damaged, or of a build before 2026-11-23, whose data directories cannot be opened", path, kChecksum);
  const Json expected = *stored;
  object.erase(kChecksum);
  if (expected != ChecksumOf(object)) return DataLoss("{} is damaged: its CRC32C is {}, {} was stored with it", path, ChecksumOf(object), expected.dump());
  return object;
}

}  // namespace membank
