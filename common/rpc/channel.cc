#include "common/rpc/channel.h"

#include <cstdlib>

#include "common/base/status_macros.h"
#include "grpcpp/create_channel.h"
#include "grpcpp/support/channel_arguments.h"

namespace membank {
namespace {

// A client that makes no call at the moment looks at its connections only this often, by gRPC's default every 5 s. Until it looks, a server
// that asks it to leave waits for it in vain. Read by gRPC once, when the process makes its first channel or server.
void LookAtIdleConnectionsOften() {
  static const int once = setenv("GRPC_CLIENT_CHANNEL_BACKUP_POLL_INTERVAL_MS", "200", /*overwrite=*/0);
  (void)once;
}

}  // namespace

absl::StatusOr<std::vector<std::shared_ptr<grpc::Channel>>> MakeChannels(const std::string& address, const ChannelOptions& options) {
  if (address.empty()) return InvalidArgument("the peer's address is empty; allowed: host:port or unix:/path");
  if (options.channels < 1 || options.channels > 64) {
    return InvalidArgument("{} channels to {}; allowed: 1 to 64", options.channels, address);
  }
  LookAtIdleConnectionsOften();
  ASSIGN_OR_RETURN(std::shared_ptr<grpc::ChannelCredentials> credentials, ClientCredentials(options.tls));
  grpc::ChannelArguments arguments;
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);  // else equal channels share one connection
  arguments.SetInt(GRPC_ARG_ENABLE_RETRIES, 0);
  arguments.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 50);
  arguments.SetInt(GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, 5000);  // the time one attempt to connect gets, despite its name
  arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 1000);
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIME_MS, 30000);
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 20000);
  arguments.SetMaxReceiveMessageSize(options.max_receive_bytes);
  arguments.SetMaxSendMessageSize(-1);
  std::vector<std::shared_ptr<grpc::Channel>> channels;
  for (int i = 0; i < options.channels; ++i) channels.push_back(grpc::CreateCustomChannel(address, credentials, arguments));
  return channels;
}

}  // namespace membank
