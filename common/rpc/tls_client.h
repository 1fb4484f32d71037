// Channel credentials that follow their files: looked at every second and taken over when they hold together (tls_follow.h). Connections that exist
// are not touched, the next ones use the new files. gRPC's file watcher does the exchange, but what it watches are copies in memory that we have
// checked: by itself it takes a key that does not fit its certificate (design/promises.md, known holes).
#pragma once

#include <memory>

#include "absl/status/statusor.h"
#include "common/rpc/tls.h"
#include "grpcpp/security/credentials.h"

namespace membank {

// `files` names something. Errors: LoadTlsMaterial's, now. The files are followed as long as a channel made with the credentials is held.
absl::StatusOr<std::shared_ptr<grpc::ChannelCredentials>> FollowingClientCredentials(const TlsFiles& files);

}  // namespace membank
