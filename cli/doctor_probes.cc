#include "cli/doctor_probes.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <functional>
#include <thread>
#include <vector>

#include "common/base/buffer.h"
#include "common/base/crc32c.h"
#include "common/base/file.h"
#include "common/base/status_macros.h"

namespace membank {
namespace {

constexpr size_t kChunk = 1 << 20;

double Seconds(const std::function<void()>& work) {
  const auto begin = std::chrono::steady_clock::now();
  work();
  return std::max(1e-9, std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count());
}

class Descriptor {
 public:
  explicit Descriptor(int fd) : fd_(fd) {}
  ~Descriptor() {
    if (fd_ >= 0) ::close(fd_);
  }
  Descriptor(const Descriptor&) = delete;
  int get() const { return fd_; }

 private:
  const int fd_;
};

Buffer Filled(size_t size) {
  Buffer buffer(size);
  for (size_t i = 0; i < size; ++i) buffer.data()[i] = static_cast<uint8_t>(i * 2654435761u >> 24);
  return buffer;
}

bool WriteAll(int fd, const uint8_t* data, size_t size) {
  while (size > 0) {
    const ssize_t n = ::write(fd, data, size);
    if (n <= 0) return false;
    data += n, size -= n;
  }
  return true;
}

bool ReadAll(int fd, uint8_t* data, size_t size) {
  while (size > 0) {
    const ssize_t n = ::read(fd, data, size);
    if (n <= 0) return false;
    data += n, size -= n;
  }
  return true;
}

struct SocketPair {
  int reader = -1, writer = -1;
};

absl::StatusOr<SocketPair> ConnectOverLoopback() {
  const Descriptor listener(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t length = sizeof(address);
  sockaddr* const any = reinterpret_cast<sockaddr*>(&address);
  if (::bind(listener.get(), any, length) != 0 || ::listen(listener.get(), 1) != 0 || ::getsockname(listener.get(), any, &length) != 0) {
    return absl::ErrnoToStatus(errno, "listen on 127.0.0.1");
  }
  SocketPair pair;
  pair.writer = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (::connect(pair.writer, any, length) != 0) {
    const int error = errno;
    ::close(pair.writer);
    return absl::ErrnoToStatus(error, "connect over 127.0.0.1");
  }
  pair.reader = ::accept4(listener.get(), nullptr, nullptr, SOCK_CLOEXEC);
  return pair;
}

}  // namespace

absl::StatusOr<DiskRates> MeasureDisk(const std::string& directory, uint64_t bytes) {
  DiskRates rates;
  const absl::StatusOr<uint64_t> free = FreeBytes(directory);
  if (!free.ok()) return Annotate(free.status(), "--directory");
  rates.free_bytes = *free;
  if (rates.free_bytes < 2 * bytes) {
    return ResourceExhausted("--directory {} has {} bytes free, measuring the disk needs {}; free some, or use a smaller --megabytes", directory,
                             rates.free_bytes, 2 * bytes);
  }
  const std::string path = fmt::format("{}/membank-doctor-{}", directory, ::getpid());
  const Descriptor file(::open(path.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600));
  if (file.get() < 0) return absl::ErrnoToStatus(errno, "create " + path);
  ::unlink(path.c_str());  // the file lives until it is closed

  Buffer chunk = Filled(kChunk);
  bool ok = true;
  constexpr int kSyncs = 8;
  const double syncs = Seconds([&] {
    for (int i = 0; i < kSyncs && ok; ++i) ok = ::pwrite(file.get(), chunk.data(), 4096, 4096 * i) == 4096 && ::fdatasync(file.get()) == 0;
  });
  const double write = Seconds([&] {
    for (uint64_t done = 0; done < bytes && ok; done += kChunk) ok = WriteAll(file.get(), chunk.data(), kChunk);
    ok = ok && ::fdatasync(file.get()) == 0;
  });
  if (!ok) return absl::ErrnoToStatus(errno, "write " + path);
  ::posix_fadvise(file.get(), 0, 0, POSIX_FADV_DONTNEED);
  ::lseek(file.get(), 0, SEEK_SET);
  const double read = Seconds([&] {
    for (uint64_t done = 0; done < bytes && ok; done += kChunk) ok = ReadAll(file.get(), chunk.data(), kChunk);
  });
  if (!ok) return absl::ErrnoToStatus(errno, "read " + path);
  rates.sync_seconds = syncs / kSyncs;
  rates.write = static_cast<double>(bytes) / write;
  rates.read = static_cast<double>(bytes) / read;
  return rates;
}

absl::StatusOr<double> MeasureLoopback(uint64_t bytes) {
  ASSIGN_OR_RETURN(const SocketPair pair, ConnectOverLoopback());
  const Descriptor reader(pair.reader), writer(pair.writer);
  const Buffer source = Filled(kChunk);
  Buffer sink(kChunk);
  bool read = true;
  const double seconds = Seconds([&] {
    std::thread receive([&] {
      for (uint64_t done = 0; done < bytes && read; done += kChunk) read = ReadAll(reader.get(), sink.data(), kChunk);
    });
    for (uint64_t done = 0; done < bytes; done += kChunk) {
      if (!WriteAll(writer.get(), source.data(), kChunk)) break;
    }
    ::shutdown(writer.get(), SHUT_WR);
    receive.join();
  });
  if (!read) return Unavailable("the loopback connection broke while it was measured");
  return static_cast<double>(bytes) / seconds;
}

double MeasureCrc32c(uint64_t bytes) {
  const Buffer buffer = Filled(16 * kChunk);
  uint32_t crc = 0;
  uint64_t done = 0;
  const double seconds = Seconds([&] {
    for (; done < bytes; done += buffer.size()) crc = ExtendCrc32c(crc, buffer.data(), buffer.size());
  });
  return static_cast<double>(done) / seconds + (crc == 1 ? 1e-9 : 0);  // the sum is used: the loop stays
}

double MeasureMemoryStream(uint64_t bytes) {
  const int threads = std::max(1u, std::thread::hardware_concurrency());
  const size_t count = std::max<size_t>(bytes / 4 / sizeof(float) / threads, 1 << 16);
  std::vector<std::vector<float>> arrays(4 * threads, std::vector<float>(count, 1.0f));
  constexpr int kPasses = 4;
  const auto stream = [&](int thread) {
    float* const w = arrays[4 * thread].data();
    float* const m = arrays[4 * thread + 1].data();
    float* const v = arrays[4 * thread + 2].data();
    const float* const g = arrays[4 * thread + 3].data();
    for (int pass = 0; pass < kPasses; ++pass) {
      for (size_t i = 0; i < count; ++i) {
        m[i] = m[i] * 0.5f + g[i];
        v[i] = v[i] * 0.5f + g[i];
        w[i] = w[i] - m[i] * v[i];
      }
    }
  };
  const double seconds = Seconds([&] {
    std::vector<std::thread> workers;
    for (int thread = 0; thread < threads; ++thread) workers.emplace_back(stream, thread);
    for (std::thread& worker : workers) worker.join();
  });
  return 7.0 * sizeof(float) * static_cast<double>(count) * threads * kPasses / seconds;
}

uint64_t PhysicalMemoryBytes() { return static_cast<uint64_t>(::sysconf(_SC_PHYS_PAGES)) * static_cast<uint64_t>(::sysconf(_SC_PAGESIZE)); }

}  // namespace membank
