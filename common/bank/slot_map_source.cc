#include "common/bank/slot_map_source.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include "common/base/file.h"
#include "common/base/status_macros.h"

namespace membank {
namespace {

// Held by whoever replaces the file; readers need no lock, the replacement is a rename.
class FileLock {
 public:
  static absl::StatusOr<FileLock> Acquire(const std::string& path) {
    const int fd = ::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644);
    if (fd < 0) return absl::ErrnoToStatus(errno, "open " + path);
    FileLock lock(fd);
    if (::flock(fd, LOCK_EX) != 0) return absl::ErrnoToStatus(errno, "lock " + path);
    return lock;
  }
  FileLock(FileLock&& other) : fd_(std::exchange(other.fd_, -1)) {}
  FileLock& operator=(FileLock&&) = delete;
  ~FileLock() {
    if (fd_ >= 0) ::close(fd_);
  }

 private:
  explicit FileLock(int fd) : fd_(fd) {}
  int fd_;
};

class FileSlotMapSource final : public SlotMapSource {
 public:
  explicit FileSlotMapSource(std::string path) : path_(std::move(path)) {}

  absl::StatusOr<SlotMap> Load() override { return SlotMap::Load(path_); }

  absl::Status Replace(const SlotMap& next) override {
    ASSIGN_OR_RETURN(const FileLock lock, FileLock::Acquire(path_ + ".lock"));
    ASSIGN_OR_RETURN(const SlotMap current, Load());
    if (current.epoch() + 1 != next.epoch())
      return FailedPrecondition("slot map {} has epoch {}, the new one is {}: somebody else changed it; look at it and plan again", path_, current.epoch(),
                     next.epoch());
    return WriteFileAtomic(path_, next.ToJson() + "\n");
  }

 private:
  const std::string path_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<SlotMapSource>> SlotMapSource::Open(const std::string& location) {
  if (location.empty()) return InvalidArgument("the slot map's location is empty; give a file");
  return std::make_unique<FileSlotMapSource>(location);
}

}  // namespace membank
