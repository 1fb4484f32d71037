// TLS files of a server or a client, read and checked by us: gRPC's own file watcher accepts a certificate and key that do not match
// (design/promises.md, known holes). With an authority (CA) file a server demands client certificates signed by it.
#pragma once

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "grpcpp/security/credentials.h"
#include "grpcpp/security/server_credentials.h"

namespace membank {

struct TlsFiles {
  std::string certificate;  // PEM chain; empty = no TLS (server) or no client certificate (client)
  std::string key;          // PEM private key of the certificate
  std::string authority;    // PEM of the authorities that the other side's certificate must come from

  bool any() const { return !certificate.empty() || !key.empty() || !authority.empty(); }
};

// Plain text when `files` names nothing. Errors: LoadTlsMaterial's (tls_material.h). A server's credentials follow their files (tls_reload.h)
// and must live as long as the server; a client's are as they were when it was made.
absl::StatusOr<std::shared_ptr<grpc::ServerCredentials>> ServerCredentials(const TlsFiles& files);
absl::StatusOr<std::shared_ptr<grpc::ChannelCredentials>> ClientCredentials(const TlsFiles& files);

}  // namespace membank
