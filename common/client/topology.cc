#include "common/client/topology.h"

#include "common/base/status_macros.h"
#include "common/rpc/channel.h"
#include "common/rpc/slot_map_location.h"

namespace membank {
namespace {

// Null when only addresses are given.
absl::StatusOr<std::shared_ptr<SlotMapSource>> OpenSource(const MemoryClientOptions& options) {
  if (!options.slot_map_path.empty() && !options.servers.empty()) {
    return InvalidArgument("both a slot map file ({}) and {} server addresses are given; give one of the two", options.slot_map_path,
                           options.servers.size());
  }
  if (!options.slot_map_path.empty()) return OpenSlotMap(options.slot_map_path, options.tls);
  if (options.servers.empty()) return InvalidArgument("neither a slot map file nor a server address is given; give one of the two");
  return std::shared_ptr<SlotMapSource>();
}

absl::StatusOr<SlotMap> LoadSlotMap(const MemoryClientOptions& options, SlotMapSource* source) {
  if (source != nullptr) return source->Load();
  std::vector<SlotServer> servers;
  for (const std::string& address : options.servers) servers.push_back({fmt::format("m{}", servers.size()), address});
  return SlotMap::Striped(std::move(servers));
}

std::vector<std::shared_ptr<grpc::Channel>> ChannelsTo(const std::string& address, const MemoryTopology& topology) {
  for (size_t i = 0; i < topology.peers.size(); ++i)
    if (topology.slot_map.servers()[i].address == address) return topology.peers[i].channels;
  return {};
}

}  // namespace

MemoryPeer PeerOf(const MemoryReplica& replica) {
  MemoryPeer peer;
  peer.name = replica.name;
  peer.channels = {replica.channel};
  peer.stub = v1::MemoryService::NewStub(replica.channel);
  return peer;
}

absl::StatusOr<std::shared_ptr<const MemoryTopology>> MemoryTopology::Load(const MemoryClientOptions& options,
                                                                           const std::shared_ptr<const MemoryTopology>& previous) {
  std::shared_ptr<SlotMapSource> source;
  if (previous != nullptr) {
    source = previous->source;
  } else {
    ASSIGN_OR_RETURN(source, OpenSource(options));
  }
  ASSIGN_OR_RETURN(SlotMap slot_map, LoadSlotMap(options, source.get()));
  if (previous != nullptr && slot_map.epoch() <= previous->slot_map.epoch()) return previous;
  auto topology = std::make_shared<MemoryTopology>();
  ChannelOptions channel_options;
  channel_options.channels = options.channels_per_server;
  channel_options.tls = options.tls;
  for (const SlotServer& server : slot_map.servers()) {
    MemoryPeer peer;
    const bool named = !options.slot_map_path.empty();
    peer.id = named ? server.id : "";
    peer.name = named ? fmt::format("memory server {} at {}", server.id, server.address) : fmt::format("memory server {}", server.address);
    if (previous != nullptr) peer.channels = ChannelsTo(server.address, *previous);
    if (peer.channels.empty()) {
      ASSIGN_OR_RETURN(peer.channels, MakeChannels(server.address, channel_options));
    }
    channel_options.channels = 1;
    for (const std::string& replica : server.replicas) {
      ASSIGN_OR_RETURN(const auto channels, MakeChannels(replica, channel_options));
      peer.replicas.push_back({fmt::format("replica {} of {}", replica, server.id), channels[0]});
    }
    channel_options.channels = options.channels_per_server;
    peer.stub = v1::MemoryService::NewStub(peer.channels[0]);
    topology->peers.push_back(std::move(peer));
  }
  topology->source = std::move(source);
  topology->slot_map = std::move(slot_map);
  return topology;
}

}  // namespace membank
