#include "common/rpc/tls.h"

#include "common/base/status_macros.h"
#include "common/rpc/tls_client.h"
#include "common/rpc/tls_reload.h"

namespace membank {

absl::StatusOr<std::shared_ptr<grpc::ServerCredentials>> ServerCredentials(const TlsFiles& files) {
  if (!files.any()) return grpc::InsecureServerCredentials();
  if (files.certificate.empty()) return InvalidArgument("a TLS server needs a certificate and a key, not only the authority {}", files.authority);
  return ReloadingServerCredentials(files);
}

absl::StatusOr<std::shared_ptr<grpc::ChannelCredentials>> ClientCredentials(const TlsFiles& files) {
  if (!files.any()) return grpc::InsecureChannelCredentials();
  return FollowingClientCredentials(files);
}

}  // namespace membank
