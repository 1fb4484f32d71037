// Server credentials that follow their files (tls_follow.h): looked at at every handshake. Connections that exist are not touched.
#pragma once

#include <memory>

#include "absl/status/statusor.h"
#include "common/rpc/tls.h"
#include "grpcpp/security/server_credentials.h"

namespace membank {

// `files` has at least a certificate and a key. Errors: LoadTlsMaterial's, now. The object must live as long as the servers that use it: gRPC
// asks it at every handshake.
absl::StatusOr<std::shared_ptr<grpc::ServerCredentials>> ReloadingServerCredentials(const TlsFiles& files);

}  // namespace membank
