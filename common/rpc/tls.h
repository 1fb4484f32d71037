// TLS files of a server or a client, read and checked by us: gRPC's own file watcher accepts a certificate and key that do not match
// (design/promises.md, known holes). With an authority (CA) file a server demands client certificates signed by it.
#pragma once

#include <memory>

#include "absl/status/statusor.h"
#include "common/rpc/tls_files.h"
#include "grpcpp/security/credentials.h"
#include "grpcpp/security/server_credentials.h"

namespace membank {

// Plain text when `files` names nothing. Errors: LoadTlsMaterial's (tls_material.h). Both follow their files (tls_reload.h, tls_client.h); a server's
// must live as long as the server.
absl::StatusOr<std::shared_ptr<grpc::ServerCredentials>> ServerCredentials(const TlsFiles& files);
absl::StatusOr<std::shared_ptr<grpc::ChannelCredentials>> ClientCredentials(const TlsFiles& files);

}  // namespace membank
