#include "common/rpc/tls_reload.h"

#include <sys/stat.h>

#include <array>
#include <tuple>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "common/base/log.h"
#include "common/base/metrics.h"
#include "common/base/status_macros.h"
#include "common/rpc/tls_material.h"
#include "grpc/grpc.h"
#include "grpc/grpc_security.h"

namespace membank {
namespace {

// What changes when a file is written or replaced, also behind a symbolic link.
using FileState = std::tuple<dev_t, ino_t, off_t, time_t, long>;

FileState StateOf(const std::string& path) {
  struct stat info = {};
  if (path.empty() || ::stat(path.c_str(), &info) != 0) return {};
  return {info.st_dev, info.st_ino, info.st_size, info.st_mtim.tv_sec, info.st_mtim.tv_nsec};
}

using FileStates = std::array<FileState, 3>;
FileStates StatesOf(const TlsFiles& files) { return {StateOf(files.certificate), StateOf(files.key), StateOf(files.authority)}; }

grpc_ssl_server_certificate_config* MakeConfig(const TlsMaterial& material) {
  const grpc_ssl_pem_key_cert_pair pair = {material.key.c_str(), material.certificate.c_str()};
  return grpc_ssl_server_certificate_config_create(material.authority.empty() ? nullptr : material.authority.c_str(), &pair, 1);
}

class Credentials final : public grpc::ServerCredentials {
 public:
  // `states` of the files were taken before they were read.
  Credentials(const TlsFiles& files, const FileStates& states, TlsMaterial material)
      : files_(files), material_(std::move(material)), states_(states) {
    const auto request = files.authority.empty() ? GRPC_SSL_DONT_REQUEST_CLIENT_CERTIFICATE
                                                 : GRPC_SSL_REQUEST_AND_REQUIRE_CLIENT_CERTIFICATE_AND_VERIFY;
    credentials_ = grpc_ssl_server_credentials_create_with_options(
        grpc_ssl_server_credentials_create_options_using_config_fetcher(request, &Credentials::Fetch, this));
    ShowExpiry();
  }
  ~Credentials() override { grpc_server_credentials_release(credentials_); }

  void SetAuthMetadataProcessor(const std::shared_ptr<grpc::AuthMetadataProcessor>&) override {}  // certificates are all we look at

 private:
  int AddPortToServer(const std::string& address, grpc_server* server) override {
    return grpc_server_add_http2_port(server, address.c_str(), credentials_);
  }

  // gRPC asks when it binds the port, and at each handshake; `config` is taken over.
  static grpc_ssl_certificate_config_reload_status Fetch(void* self, grpc_ssl_server_certificate_config** config) {
    return static_cast<Credentials*>(self)->Look(config);
  }

  grpc_ssl_certificate_config_reload_status Look(grpc_ssl_server_certificate_config** config) ABSL_LOCKS_EXCLUDED(mu_) {
    absl::MutexLock lock(&mu_);
    Reload();
    if (given_ == generation_) return GRPC_SSL_CERTIFICATE_CONFIG_RELOAD_UNCHANGED;
    given_ = generation_;
    *config = MakeConfig(material_);
    return GRPC_SSL_CERTIFICATE_CONFIG_RELOAD_NEW;
  }

  void Reload() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    const FileStates states = StatesOf(files_);  // before reading: a file that changes while it is read is read again
    if (states == states_) return;
    absl::StatusOr<TlsMaterial> material = LoadTlsMaterial(files_);
    if (!material.ok()) {
      static prometheus::Counter& failures = GetCounter("membank_tls_reload_failures_total", "Looks at changed TLS files that were not taken over");
      failures.Increment();
      const std::string reason(material.status().message());
      if (reason != last_failure_) LOG_ERROR("the TLS files changed but are not taken over, the last good ones stay: {}", reason);
      last_failure_ = reason;
      return;
    }
    material_ = *std::move(material);
    states_ = states;
    last_failure_.clear();
    ++generation_;
    ShowExpiry();
    LOG_INFO("the TLS files changed and were taken over; the certificate expires at {}", absl::FormatTime(material_.expires, absl::UTCTimeZone()));
  }

  void ShowExpiry() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    static prometheus::Gauge& expires = GetGauge("membank_tls_certificate_expires_seconds", "Unix time at which the certificate in use expires");
    expires.Set(static_cast<double>(absl::ToUnixSeconds(material_.expires)));
  }

  const TlsFiles files_;
  grpc_server_credentials* credentials_ = nullptr;
  absl::Mutex mu_;
  TlsMaterial material_ ABSL_GUARDED_BY(mu_);
  FileStates states_ ABSL_GUARDED_BY(mu_);           // of the files that material_ was read from
  uint64_t generation_ ABSL_GUARDED_BY(mu_) = 1, given_ ABSL_GUARDED_BY(mu_) = 0;
  std::string last_failure_ ABSL_GUARDED_BY(mu_);
};

}  // namespace

absl::StatusOr<std::shared_ptr<grpc::ServerCredentials>> ReloadingServerCredentials(const TlsFiles& files) {
  const FileStates states = StatesOf(files);
  ASSIGN_OR_RETURN(TlsMaterial material, LoadTlsMaterial(files));
  return std::make_shared<Credentials>(files, states, std::move(material));
}

}  // namespace membank
