// Server credentials that follow their files: looked at (not read) at every handshake, read when they changed, and taken over only when
// everything in them holds together (tls_material.h). Otherwise the last good ones stay, the log says why, and membank_tls_reload_failures_total counts.
// Connections that exist are not touched. membank_tls_certificate_expires_seconds is the end of the certificate in use, as Unix time.
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
