#include "common/bank/slot_map_source.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <filesystem>

#include "absl/synchronization/notification.h"
#include "common/base/file.h"
#include "common/base/status_macros.h"

namespace membank {
namespace {

constexpr absl::Duration kFilePause = absl::Seconds(1);  // between two looks at a file
constexpr int kMostChanges = 16;                         // times that somebody else may be quicker

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

  absl::Status Create(const SlotMap& map) override {
    ASSIGN_OR_RETURN(const FileLock lock, FileLock::Acquire(path_ + ".lock"));
    if (std::filesystem::exists(path_)) return AlreadyExists("slot map {} exists; `membank bank slots` changes it", path_);
    return WriteFileAtomic(path_, map.ToJson() + "\n");
  }

  absl::Status Replace(const SlotMap& next) override {
    ASSIGN_OR_RETURN(const FileLock lock, FileLock::Acquire(path_ + ".lock"));
    ASSIGN_OR_RETURN(const SlotMap current, Load());
    if (current.epoch() + 1 != next.epoch()) return SlotMapConflict(path_, current.epoch(), next.epoch());
    return WriteFileAtomic(path_, next.ToJson() + "\n");
  }

  void AwaitChange() override { stop_.WaitForNotificationWithTimeout(kFilePause); }
  void Stop() override { stop_.Notify(); }

 private:
  const std::string path_;
  absl::Notification stop_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<SlotMapSource>> OpenSlotMapFile(const std::string& path) {
  if (path.empty()) return InvalidArgument("the slot map's location is empty; give a file");
  return std::make_unique<FileSlotMapSource>(path);
}

absl::StatusOr<SlotMap> ChangeSlotMap(SlotMapSource* source, const std::function<absl::StatusOr<SlotMap>(const SlotMap&)>& change) {
  for (int attempt = 1;; ++attempt) {
    ASSIGN_OR_RETURN(const SlotMap map, source->Load());
    ASSIGN_OR_RETURN(SlotMap next, change(map));
    const absl::Status replaced = source->Replace(next);
    if (replaced.ok()) return next;
    if (!absl::IsFailedPrecondition(replaced) || attempt == kMostChanges) return replaced;
  }
}

absl::Status SlotMapConflict(const std::string& location, uint64_t epoch, uint64_t next) {
  return FailedPrecondition("slot map {} has epoch {}, the new one is {}: somebody else changed it; look at it and plan again", location, epoch, next);
}

}  // namespace membank
