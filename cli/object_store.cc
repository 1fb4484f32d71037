#include "cli/object_store.h"

#include <unistd.h>

#include <filesystem>

#include "cli/s3_store.h"
#include "common/base/file.h"
#include "common/base/status_macros.h"

namespace membank {
namespace {

class DirectoryStore final : public ObjectStore {
 public:
  explicit DirectoryStore(std::string directory) : directory_(std::move(directory)) {}

  std::string PlaceOf(const std::string& name) const override { return directory_ + "/" + name; }

  absl::Status Put(const std::string& name, std::string_view contents, bool only_new) override {
    RETURN_IF_ERROR(MakeDirectories(directory_));
    const std::string path = PlaceOf(name);
    if (!only_new) return WriteFileAtomic(path, contents);
    const std::string temporary = path + ".new";
    RETURN_IF_ERROR(WriteFileAtomic(temporary, contents));
    const int linked = ::link(temporary.c_str(), path.c_str()), error = errno;  // unlike rename, it never replaces
    ::unlink(temporary.c_str());
    if (linked != 0 && error == EEXIST) return AlreadyExists("{} exists", path);
    if (linked != 0) return absl::ErrnoToStatus(error, "create " + path);
    return SyncDirectory(directory_);
  }

  absl::StatusOr<std::string> Get(const std::string& name) override {
    if (!std::filesystem::exists(PlaceOf(name))) return NotFound("{} does not exist", PlaceOf(name));
    return ReadFile(PlaceOf(name));
  }

 private:
  const std::string directory_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<ObjectStore>> ObjectStore::Open(const std::string& place) {
  if (place.rfind("s3://", 0) == 0) return OpenS3Store(place);
  if (place.empty() || place.find("://") != std::string::npos)
    return InvalidArgument("\"{}\" is no place for a backup; allowed: a directory, or s3://bucket/prefix", place);
  return std::make_unique<DirectoryStore>(place);
}

}  // namespace membank
