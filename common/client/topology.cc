#include "common/client/topology.h"

#include "common/base/status_macros.h"
#include "common/rpc/channel.h"

namespace membank {
namespace {

absl::StatusOr<SlotMap> LoadSlotMap(const MemoryClientOptions& options) {
  if (!options.slot_map_path.empty() && !options.servers.empty()) {
    return InvalidArgument("both a slot map file ({}) and {} server addresses are given; give one of the two", options.slot_map_path,
                           options.servers.size());
  }
  if (!options.slot_map_path.empty()) return SlotMap::Load(options.slot_map_path);
  if (options.servers.empty()) return InvalidArgument("neither a slot map file nor a server address is given; give one of the two");
  std::vector<SlotServer> servers;
  for (const std::string& address : options.servers) servers.push_back({fmt::format("m{}", servers.size()), address});
  return SlotMap::Striped(std::move(servers));
}

}  // namespace

absl::StatusOr<std::shared_ptr<const MemoryTopology>> MemoryTopology::Load(const MemoryClientOptions& options) {
  ASSIGN_OR_RETURN(SlotMap slot_map, LoadSlotMap(options));
  auto topology = std::make_shared<MemoryTopology>();
  ChannelOptions channel_options;
  channel_options.channels = options.channels_per_server;
  channel_options.tls = options.tls;
  for (const SlotServer& server : slot_map.servers()) {
    MemoryPeer peer;
    const bool named = !options.slot_map_path.empty();
    peer.id = named ? server.id : "";
    peer.name = named ? fmt::format("memory server {} at {}", server.id, server.address) : fmt::format("memory server {}", server.address);
    ASSIGN_OR_RETURN(peer.channels, MakeChannels(server.address, channel_options));
    peer.stub = v1::MemoryService::NewStub(peer.channels[0]);
    topology->peers.push_back(std::move(peer));
  }
  topology->slot_map = std::move(slot_map);
  return topology;
}

}  // namespace membank
