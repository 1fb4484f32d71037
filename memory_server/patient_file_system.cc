#include "memory_server/patient_file_system.h"

#include <fcntl.h>
#include <rocksdb/env.h>
#include <rocksdb/file_system.h>
#include <unistd.h>

#include <atomic>

#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "common/base/log.h"

namespace membank {
namespace {

using rocksdb::IODebugContext;
using rocksdb::IOOptions;
using rocksdb::IOStatus;

constexpr absl::Duration kLookAgain = absl::Milliseconds(100), kTellAgain = absl::Seconds(30);
std::atomic<bool> stopping{false};

class PatientFile final : public rocksdb::FSWritableFileOwnerWrapper {
 public:
  PatientFile(std::string name, Durable durable, std::unique_ptr<rocksdb::FSWritableFile> file)
      : FSWritableFileOwnerWrapper(std::move(file)), name_(std::move(name)), durable_(durable) {}

  IOStatus Append(const rocksdb::Slice& data, const IOOptions& options, IODebugContext* debug) override {
    WaitForRoom(data.size(), options, debug);
    return target()->Append(data, options, debug);
  }
  IOStatus Append(const rocksdb::Slice& data, const IOOptions& options, const rocksdb::DataVerificationInfo& verification,
                  IODebugContext* debug) override {
    WaitForRoom(data.size(), options, debug);
    return target()->Append(data, options, verification, debug);
  }

  IOStatus Sync(const IOOptions& options, IODebugContext* debug) override {
    return durable_ == Durable::kWhenSynced ? target()->Sync(options, debug) : target()->RangeSync(0, target()->GetFileSize(options, debug), options, debug);
  }
  IOStatus Fsync(const IOOptions& options, IODebugContext* debug) override {
    return durable_ == Durable::kWhenSynced ? target()->Fsync(options, debug) : Sync(options, debug);
  }

 private:
  // A file system that cannot allocate shows in the write itself.
  void WaitForRoom(uint64_t bytes, const IOOptions& options, IODebugContext* debug) {
    if (bytes == 0) return;
    const uint64_t offset = target()->GetFileSize(options, debug);
    absl::Time tell = absl::InfinitePast();
    while (target()->Allocate(offset, bytes, options, debug).IsNoSpace() && !stopping.load()) {
      if (absl::Now() >= tell) {
        LOG_WARN("{}: no room for {} bytes; waiting for space, reads go on", name_, bytes);
        tell = absl::Now() + kTellAgain;
      }
      absl::SleepFor(kLookAgain);
    }
  }

  const std::string name_;
  const Durable durable_;
};

class PatientFileSystem final : public rocksdb::FileSystemWrapper {
 public:
  explicit PatientFileSystem(Durable durable) : FileSystemWrapper(rocksdb::FileSystem::Default()), durable_(durable) {}

  const char* Name() const override { return "membank"; }

  IOStatus NewWritableFile(const std::string& name, const rocksdb::FileOptions& options, std::unique_ptr<rocksdb::FSWritableFile>* file,
                           IODebugContext* debug) override {
    const IOStatus status = target()->NewWritableFile(name, options, file, debug);
    if (status.ok()) *file = std::make_unique<PatientFile>(name, durable_, std::move(*file));
    return status;
  }

 private:
  const Durable durable_;
};

}  // namespace

rocksdb::Env* PatientEnv(Durable durable) {
  static rocksdb::Env* const at_once = rocksdb::NewCompositeEnv(std::make_shared<PatientFileSystem>(Durable::kWhenSynced)).release();
  static rocksdb::Env* const later = rocksdb::NewCompositeEnv(std::make_shared<PatientFileSystem>(Durable::kLater)).release();
  return durable == Durable::kWhenSynced ? at_once : later;
}

void StopWaitingForRoom() { stopping.store(true); }

absl::Status SyncFile(const std::string& path) {
  const int file = ::open(path.c_str(), O_WRONLY | O_CLOEXEC);
  if (file < 0) return absl::ErrnoToStatus(errno, "open " + path);
  const bool synced = ::fdatasync(file) == 0;
  const int error = errno;
  ::close(file);
  return synced ? absl::OkStatus() : absl::ErrnoToStatus(error, "fdatasync " + path);
}

}  // namespace membank
