// The identity of a call's peer, from its verified client certificate. Pure function, any thread.
#pragma once

#include "grpcpp/server_context.h"
#include "memory_server/access.h"

namespace membank {

// Anonymous without TLS, and when the server did not demand and verify a certificate.
Caller CallerOf(const grpc::ServerContextBase& context);

}  // namespace membank
