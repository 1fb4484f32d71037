#include "common/rpc/tls_client.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <thread>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "common/base/status_macros.h"
#include "common/rpc/tls_follow.h"
#include "grpcpp/create_channel.h"
#include "grpcpp/security/tls_certificate_provider.h"
#include "grpcpp/security/tls_credentials_options.h"

namespace membank {
namespace {

constexpr absl::Duration kLookInterval = absl::Seconds(1);
constexpr unsigned kWatchSeconds = 1;

// A file in memory with a path, whose contents are replaced as a whole.
class MemoryFile {
 public:
  MemoryFile() = default;
  ~MemoryFile() {
    if (fd_ >= 0) ::close(fd_);
  }
  MemoryFile(const MemoryFile&) = delete;
  MemoryFile& operator=(const MemoryFile&) = delete;

  absl::Status Replace(const std::string& contents) {
    if (fd_ >= 0 && contents == contents_) return absl::OkStatus();
    const int fd = ::memfd_create("membank-tls", MFD_CLOEXEC);
    if (fd < 0) return absl::ErrnoToStatus(errno, "memfd_create");
    for (size_t written = 0; written < contents.size();) {
      const ssize_t n = ::write(fd, contents.data() + written, contents.size() - written);
      if (n < 0) {
        const absl::Status failed = absl::ErrnoToStatus(errno, "write to memory");
        ::close(fd);
        return failed;
      }
      written += static_cast<size_t>(n);
    }
    contents_ = contents;
    if (fd_ < 0) {
      fd_ = fd;
      return absl::OkStatus();
    }
    const bool replaced = ::dup3(fd, fd_, O_CLOEXEC) >= 0;  // whoever opens the path gets the old or the new file
    const absl::Status status = replaced ? absl::OkStatus() : absl::ErrnoToStatus(errno, "dup3");
    ::close(fd);
    return status;
  }
  std::string path() const { return fd_ < 0 ? "" : fmt::format("/proc/self/fd/{}", fd_); }

 private:
  int fd_ = -1;
  std::string contents_;
};

class Credentials final : public grpc::ChannelCredentials, public std::enable_shared_from_this<Credentials> {
 public:
  explicit Credentials(std::unique_ptr<TlsFollower> follower) : follower_(std::move(follower)) {}
  ~Credentials() override {
    {
      absl::MutexLock lock(&mu_);
      stopping_ = true;
    }
    if (thread_.joinable()) thread_.join();
  }

  absl::Status Start() {
    RETURN_IF_ERROR(Replace());
    grpc::experimental::TlsChannelCredentialsOptions options;
    options.set_certificate_provider(
        std::make_shared<grpc::experimental::FileWatcherCertificateProvider>(key_.path(), certificate_.path(), authority_.path(), kWatchSeconds));
    if (!authority_.path().empty()) options.watch_root_certs();  // else the system's
    if (!certificate_.path().empty()) options.watch_identity_key_cert_pairs();
    following_ = grpc::experimental::TlsCredentials(options);
    thread_ = std::thread([this] { Follow(); });
    return absl::OkStatus();
  }

 private:
  grpc::SecureChannelCredentials* AsSecureCredentials() override { return nullptr; }  // for credentials made of others only

  std::shared_ptr<grpc::Channel> CreateChannelImpl(const std::string& target, const grpc::ChannelArguments& arguments) override {
    std::shared_ptr<grpc::Channel> channel = grpc::CreateCustomChannel(target, following_, arguments);
    grpc::Channel* const raw = channel.get();
    return {raw, [channel = std::move(channel), self = shared_from_this()](grpc::Channel*) {}};  // holds what follows the files
  }

  absl::Status Replace() {
    const TlsMaterial& material = follower_->material();
    if (!material.key.empty()) RETURN_IF_ERROR(key_.Replace(material.key));
    if (!material.certificate.empty()) RETURN_IF_ERROR(certificate_.Replace(material.certificate));
    if (!material.authority.empty()) RETURN_IF_ERROR(authority_.Replace(material.authority));
    return absl::OkStatus();
  }

  void Follow() ABSL_LOCKS_EXCLUDED(mu_) {
    bool current = true;
    while (true) {
      {
        absl::MutexLock lock(&mu_);
        if (mu_.AwaitWithTimeout(absl::Condition(&stopping_), kLookInterval)) return;
      }
      if (follower_->Look()) current = false;
      if (!current) current = Replace().ok();  // out of descriptors: next time
    }
  }

  const std::unique_ptr<TlsFollower> follower_;  // of Start, then of the thread
  MemoryFile key_, certificate_, authority_;
  std::shared_ptr<grpc::ChannelCredentials> following_;

  absl::Mutex mu_;
  bool stopping_ ABSL_GUARDED_BY(mu_) = false;
  std::thread thread_;
};

}  // namespace

absl::StatusOr<std::shared_ptr<grpc::ChannelCredentials>> FollowingClientCredentials(const TlsFiles& files) {
  ASSIGN_OR_RETURN(std::unique_ptr<TlsFollower> follower, TlsFollower::Open(files));
  const auto credentials = std::make_shared<Credentials>(std::move(follower));
  RETURN_IF_ERROR(credentials->Start());
  return credentials;
}

}  // namespace membank
