#include "common/rpc/tls_reload.h"

#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "common/base/status_macros.h"
#include "common/rpc/tls_follow.h"
#include "grpc/grpc.h"
#include "grpc/grpc_security.h"

namespace membank {
namespace {

grpc_ssl_server_certificate_config* MakeConfig(const TlsMaterial& material) {
  const grpc_ssl_pem_key_cert_pair pair = {material.key.c_str(), material.certificate.c_str()};
  return grpc_ssl_server_certificate_config_create(material.authority.empty() ? nullptr : material.authority.c_str(), &pair, 1);
}

class Credentials final : public grpc::ServerCredentials {
 public:
  Credentials(const TlsFiles& files, std::unique_ptr<TlsFollower> follower) : follower_(std::move(follower)) {
    const auto request = files.authority.empty() ? GRPC_SSL_DONT_REQUEST_CLIENT_CERTIFICATE
                                                 : GRPC_SSL_REQUEST_AND_REQUIRE_CLIENT_CERTIFICATE_AND_VERIFY;
    credentials_ = grpc_ssl_server_credentials_create_with_options(
        grpc_ssl_server_credentials_create_options_using_config_fetcher(request, &Credentials::Fetch, this));
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
    if (follower_->Look()) given_ = false;
    if (given_) return GRPC_SSL_CERTIFICATE_CONFIG_RELOAD_UNCHANGED;
    given_ = true;
    *config = MakeConfig(follower_->material());
    return GRPC_SSL_CERTIFICATE_CONFIG_RELOAD_NEW;
  }

  grpc_server_credentials* credentials_ = nullptr;
  absl::Mutex mu_;
  const std::unique_ptr<TlsFollower> follower_ ABSL_PT_GUARDED_BY(mu_);
  bool given_ ABSL_GUARDED_BY(mu_) = false;  // the follower's material, to gRPC
};

}  // namespace

absl::StatusOr<std::shared_ptr<grpc::ServerCredentials>> ReloadingServerCredentials(const TlsFiles& files) {
  ASSIGN_OR_RETURN(std::unique_ptr<TlsFollower> follower, TlsFollower::Open(files));
  return std::make_shared<Credentials>(files, std::move(follower));
}

}  // namespace membank
