// One gRPC server with our limits: a memory quota, bounded messages, handshake time-out, keepalive, health service, reflection, TLS,
// and a graceful end. Owned by main (or a test), used from one thread; `SetReady` from any. The services must outlive it.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "common/rpc/tls.h"
#include "grpcpp/server.h"

namespace membank {

struct RpcServerOptions {
  std::string listen = "127.0.0.1:0";          // host:port, port 0 = any free one, or unix:/path
  uint64_t memory_quota_bytes = 1ull << 30;    // of transport buffers of all calls together
  int max_receive_bytes = 8 << 20;             // of one message; larger ones are RESOURCE_EXHAUSTED
  int max_streams_per_connection = 256;        // concurrent calls of one client connection; more wait
  std::chrono::milliseconds handshake_timeout{5000};
  TlsFiles tls;
};

class RpcServer {
 public:
  // UNAVAILABLE when the address cannot be bound (no port is ever shared with another process).
  static absl::StatusOr<std::unique_ptr<RpcServer>> Start(const RpcServerOptions& options, const std::vector<grpc::Service*>& services);
  ~RpcServer();  // Shutdown(0)

  // Where clients reach it: the host as given, the port that was bound.
  const std::string& address() const { return address_; }
  int port() const { return port_; }

  // What the standard health service answers; false at first.
  void SetReady(bool ready);

  // Health off, no new calls, waits until running calls end or `drain` is over, then cancels what is left. Idempotent.
  void Shutdown(std::chrono::milliseconds drain);

 private:
  RpcServer() = default;
  std::shared_ptr<grpc::ServerCredentials> credentials_;  // outlives the server, which asks it at every handshake
  std::unique_ptr<grpc::Server> server_;
  std::string address_;
  int port_ = 0;
};

}  // namespace membank
