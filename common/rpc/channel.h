// Channels to one peer: several distinct connections (own subchannel pools), quick reconnect, no hidden retries, raised message limit.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "common/rpc/tls.h"
#include "grpcpp/channel.h"

namespace membank {

struct ChannelOptions {
  int channels = 1;                    // connections; calls are spread over them by the caller
  int max_receive_bytes = 64 << 20;    // of one message
  TlsFiles tls;
};

// Lazy: connects on the first call and again, within a second, after the peer came back.
absl::StatusOr<std::vector<std::shared_ptr<grpc::Channel>>> MakeChannels(const std::string& address, const ChannelOptions& options);

}  // namespace membank
