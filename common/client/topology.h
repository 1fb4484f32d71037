// Who has what, and the connections to them: a slot map and the channels to each of its servers. Immutable; shared by the calls that run
// while a newer map replaces it. Any thread.
#pragma once

#include <atomic>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "common/bank/slot_map_source.h"
#include "common/client/memory_client.h"
#include "grpcpp/channel.h"
#include "membank/v1/memory.grpc.pb.h"

namespace membank {

// A server that has the published versions of another one, too.
struct MemoryReplica {
  std::string name;
  std::shared_ptr<grpc::Channel> channel;
};

struct MemoryPeer {
  std::string name;  // "m0 at 127.0.0.1:7101": in front of every error
  std::string id;    // empty when only addresses were given
  std::vector<std::shared_ptr<grpc::Channel>> channels;
  std::unique_ptr<v1::MemoryService::Stub> stub;  // of the first channel
  std::vector<MemoryReplica> replicas;
  std::shared_ptr<std::atomic<int64_t>> away_until = std::make_shared<std::atomic<int64_t>>(0);  // Unix ms: until then replicas are asked first
};

// The replica, to be called by itself.
MemoryPeer PeerOf(const MemoryReplica& replica);

struct MemoryTopology {
  std::shared_ptr<SlotMapSource> source;  // of slot_map; null when only addresses were given
  SlotMap slot_map;
  std::vector<MemoryPeer> peers;  // as slot_map.servers()

  // From options.slot_map_path, or a striped map over options.servers with epoch 1. `previous`, when the map is no newer; else connections to
  // servers of `previous` are kept.
  static absl::StatusOr<std::shared_ptr<const MemoryTopology>> Load(const MemoryClientOptions& options,
                                                                    const std::shared_ptr<const MemoryTopology>& previous = nullptr);
};

}  // namespace membank
