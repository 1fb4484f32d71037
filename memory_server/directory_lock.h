// Holds <directory>/LOCK (flock), so that two processes never share a data directory. The kernel frees it when the process dies.
#pragma once

#include <memory>
#include <string>

#include "absl/status/statusor.h"

namespace membank {

class DirectoryLock {
 public:
  // FAILED_PRECONDITION when another process, or another shard of this one, holds it.
  static absl::StatusOr<std::unique_ptr<DirectoryLock>> Acquire(const std::string& directory);
  ~DirectoryLock();
  DirectoryLock(const DirectoryLock&) = delete;
  DirectoryLock& operator=(const DirectoryLock&) = delete;

 private:
  explicit DirectoryLock(int fd) : fd_(fd) {}
  const int fd_;
};

}  // namespace membank
