#include "common/base/file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <cerrno>
#include <filesystem>

#include "common/base/status_macros.h"

namespace membank {
namespace {

absl::Status FromErrno(int error, std::string_view what, std::string_view path) {
  return absl::ErrnoToStatus(error, fmt::format("{} {}", what, path));
}

class Descriptor {
 public:
  explicit Descriptor(int fd) : fd_(fd) {}
  ~Descriptor() {
    if (fd_ >= 0) ::close(fd_);
  }
  int get() const { return fd_; }

 private:
  int fd_;
};

absl::Status WriteAll(int fd, std::string_view contents, const std::string& path) {
  while (!contents.empty()) {
    const ssize_t n = ::write(fd, contents.data(), contents.size());
    if (n < 0) {
      if (errno == EINTR) continue;
      return FromErrno(errno, "write", path);
    }
    contents.remove_prefix(static_cast<size_t>(n));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::string> ReadFile(const std::string& path) {
  Descriptor fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (fd.get() < 0) return FromErrno(errno, "open", path);
  std::string contents;
  struct stat info;
  if (::fstat(fd.get(), &info) == 0 && info.st_size > 0) contents.reserve(static_cast<size_t>(info.st_size));
  char chunk[65536];
  while (true) {
    const ssize_t n = ::read(fd.get(), chunk, sizeof(chunk));
    if (n == 0) return contents;
    if (n < 0) {
      if (errno == EINTR) continue;
      return FromErrno(errno, "read", path);
    }
    contents.append(chunk, static_cast<size_t>(n));
  }
}

absl::Status WriteFileAtomic(const std::string& path, std::string_view contents) {
  return WriteFileAtomic(path, absl::MakeConstSpan(&contents, 1));
}

absl::Status WriteFileAtomic(const std::string& path, absl::Span<const std::string_view> pieces) {
  const std::string temporary = path + ".tmp";
  {
    Descriptor fd(::open(temporary.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644));
    if (fd.get() < 0) return FromErrno(errno, "create", temporary);
    absl::Status written;
    for (size_t i = 0; i < pieces.size() && written.ok(); ++i) written = WriteAll(fd.get(), pieces[i], temporary);
    if (written.ok() && ::fsync(fd.get()) != 0) written = FromErrno(errno, "fsync", temporary);
    if (!written.ok()) {
      ::unlink(temporary.c_str());
      return written;
    }
  }
  if (::rename(temporary.c_str(), path.c_str()) != 0) return FromErrno(errno, "rename to", path);
  const std::string parent = std::filesystem::path(path).parent_path();
  return SyncDirectory(parent.empty() ? "." : parent);
}

absl::Status MakeDirectories(const std::string& path) {
  std::error_code error;
  std::filesystem::create_directories(path, error);
  return error ? FromErrno(error.value(), "create directory", path) : absl::OkStatus();
}

absl::Status SyncDirectory(const std::string& path) {
  Descriptor fd(::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (fd.get() < 0) return FromErrno(errno, "open directory", path);
  return ::fsync(fd.get()) == 0 ? absl::OkStatus() : FromErrno(errno, "fsync directory", path);
}

absl::StatusOr<std::shared_ptr<MappedFile>> MappedFile::Open(const std::string& path) {
  Descriptor fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (fd.get() < 0) return FromErrno(errno, "open", path);
  struct stat info;
  if (::fstat(fd.get(), &info) != 0) return FromErrno(errno, "stat", path);
  if (!S_ISREG(info.st_mode)) return InvalidArgument("{} is not a regular file", path);
  const size_t size = static_cast<size_t>(info.st_size);
  if (size == 0) return std::shared_ptr<MappedFile>(new MappedFile(path, nullptr, 0));
  void* data = ::mmap(nullptr, size, PROT_READ, MAP_PRIVATE, fd.get(), 0);
  if (data == MAP_FAILED) return FromErrno(errno, "mmap", path);
  return std::shared_ptr<MappedFile>(new MappedFile(path, static_cast<const uint8_t*>(data), size));
}

MappedFile::~MappedFile() {
  if (data_ != nullptr) ::munmap(const_cast<uint8_t*>(data_), size_);
}

absl::StatusOr<uint64_t> FreeBytes(const std::string& directory) {
  struct statvfs info;
  if (::statvfs(directory.c_str(), &info) != 0) return FromErrno(errno, "statvfs", directory);
  return uint64_t{info.f_bavail} * info.f_frsize;
}

}  // namespace membank
