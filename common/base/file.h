// Files: whole reads, atomic durable writes, read-only maps. Errors name the path and errno. Any thread.
#pragma once

#include <memory>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"
#include "absl/types/span.h"

namespace membank {

absl::StatusOr<std::string> ReadFile(const std::string& path);

// Writes `path`.tmp, fsyncs it, renames it over `path`, fsyncs the directory: afterwards `path` is the old file or the whole new one.
absl::Status WriteFileAtomic(const std::string& path, std::string_view contents);
absl::Status WriteFileAtomic(const std::string& path, absl::Span<const std::string_view> pieces);   // the pieces one after the other

absl::Status MakeDirectories(const std::string& path);  // like mkdir -p

// fsync of a directory, so that renames and creations in it survive a crash.
absl::Status SyncDirectory(const std::string& path);

// A read-only memory map of a whole file; unmapped when destroyed. An empty file has an empty span.
class MappedFile {
 public:
  static absl::StatusOr<std::shared_ptr<MappedFile>> Open(const std::string& path);
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  absl::Span<const uint8_t> bytes() const { return {data_, size_}; }
  const std::string& path() const { return path_; }

 private:
  MappedFile(std::string path, const uint8_t* data, size_t size) : path_(std::move(path)), data_(data), size_(size) {}
  std::string path_;
  const uint8_t* data_;
  size_t size_;
};

// What an unprivileged process may still write on the file system of this directory.
absl::StatusOr<uint64_t> FreeBytes(const std::string& directory);

}  // namespace membank
