#include "model_worker/train/file_checksums.h"

#include <filesystem>

#include "common/base/crc32c.h"
#include "common/base/file.h"
#include "common/base/status_macros.h"

namespace membank {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::json;

absl::StatusOr<Json> ChecksumFile(const std::string& path) {
  ASSIGN_OR_RETURN(const std::shared_ptr<MappedFile> file, MappedFile::Open(path));
  return Json{{"bytes", file->bytes().size()}, {"crc32c", fmt::format("{:08x}", Crc32c(file->bytes().data(), file->bytes().size()))}};
}

}  // namespace

absl::StatusOr<Json> ChecksumFiles(const std::string& directory) {
  Json files = Json::object();
  std::error_code error;
  for (const fs::directory_entry& entry : fs::recursive_directory_iterator(directory, error)) {
    const std::string name = entry.path().lexically_relative(directory).string();
    if (!entry.is_regular_file() || name == "manifest.json") continue;
    ASSIGN_OR_RETURN(files[name], ChecksumFile(entry.path()));
  }
  if (error) return Unavailable("cannot list {}: {}", directory, error.message());
  return files;
}

std::vector<std::string> DamagedFiles(const std::string& directory, const Json& recorded) {
  std::vector<std::string> damage;
  for (const auto& [name, expected] : recorded.items()) {
    const std::string path = directory + "/" + name;
    const absl::StatusOr<Json> found = ChecksumFile(path);
    if (!found.ok()) damage.push_back(std::string(found.status().message()));
    else if (*found != expected) damage.push_back(fmt::format("{} is {}, the manifest says {}", path, found->dump(), expected.dump()));
  }
  return damage;
}

}  // namespace membank
