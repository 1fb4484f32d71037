#include "common/client/access_client.h"

#include <algorithm>

#include "absl/time/clock.h"
#include "common/base/status_macros.h"
#include "common/client/peer_call.h"
#include "common/rpc/wire.h"

namespace membank {
namespace {

constexpr absl::Duration kReplicaLag = absl::Seconds(10);  // a replica follows the access table of its owner, a second behind

}  // namespace

absl::StatusOr<std::unique_ptr<AccessClient>> AccessClient::Create(const MemoryClientOptions& options) {
  MemoryClientOptions one = options;
  one.channels_per_server = 1;
  ASSIGN_OR_RETURN(std::shared_ptr<const MemoryTopology> topology, MemoryTopology::Load(one));
  return std::unique_ptr<AccessClient>(new AccessClient(one, std::move(topology)));
}

absl::StatusOr<AccessView> AccessClient::Read(std::chrono::milliseconds timeout) const {
  const absl::Time deadline = absl::Now() + absl::FromChrono(timeout);
  std::vector<v1::AccessTable> tables(topology_->peers.size());
  std::vector<absl::Status> statuses = StatusesInParallel(tables.size(), [&](size_t i) {
    return CallPeer(topology_->peers[i], deadline, true, &v1::MemoryService::Stub::GetAccess, v1::GetAccessRequest(), &tables[i]);
  });
  AccessView view;
  const v1::AccessTable* newest = nullptr;
  for (size_t i = 0; i < tables.size(); ++i) {
    view.epochs.push_back(tables[i].epoch());
    if (statuses[i].ok() && (newest == nullptr || tables[i].epoch() > newest->epoch())) newest = &tables[i];
  }
  if (newest == nullptr) return statuses.front();
  ASSIGN_OR_RETURN(view.table, FromProto(*newest));
  return view;
}

absl::StatusOr<BankSpec> AccessClient::Spec() const {
  v1::Manifest manifest;
  const absl::Time deadline = absl::Now() + absl::FromChrono(options_.connect_timeout);
  RETURN_IF_ERROR(CallPeer(topology_->peers[0], deadline, true, &v1::MemoryService::Stub::GetManifest, v1::GetManifestRequest(), &manifest));
  return FromProto(manifest.spec());
}

absl::StatusOr<AccessTable> AccessClient::Change(const std::function<absl::Status(const BankSpec&, AccessTable*)>& change) const {
  ASSIGN_OR_RETURN(const BankSpec spec, Spec());
  const absl::Time deadline = absl::Now() + absl::FromChrono(options_.call_timeout);
  std::vector<v1::AccessTable> tables(topology_->peers.size());
  RETURN_IF_ERROR(InParallel(tables.size(), [&](size_t i) {
    return CallPeer(topology_->peers[i], deadline, true, &v1::MemoryService::Stub::GetAccess, v1::GetAccessRequest(), &tables[i]);
  }));
  const auto newest = std::max_element(tables.begin(), tables.end(), [](const auto& a, const auto& b) { return a.epoch() < b.epoch(); });
  ASSIGN_OR_RETURN(AccessTable table, FromProto(*newest));
  RETURN_IF_ERROR(change(spec, &table));
  ++table.epoch;
  RETURN_IF_ERROR(table.Validate(spec.fan_out, spec.depth()));
  v1::SetAccessRequest request;
  ToProto(table, request.mutable_table());
  RETURN_IF_ERROR(InParallel(topology_->peers.size(), [&](size_t i) {
    v1::SetAccessReply reply;
    return CallPeer(topology_->peers[i], deadline, true, &v1::MemoryService::Stub::SetAccess, request, &reply);
  }));
  return table;
}

absl::StatusOr<PurgeSummary> AccessClient::Purge(const std::string& text) const {
  ASSIGN_OR_RETURN(const BankSpec spec, Spec());
  ASSIGN_OR_RETURN(const TreePrefix prefix, ParsePrefix(text, spec.fan_out, spec.depth()));
  v1::PurgeBlocksRequest request;
  request.mutable_prefix()->set_level(prefix.level);
  request.mutable_prefix()->set_cluster(prefix.cluster);
  std::vector<v1::PurgeBlocksReply> replies(topology_->peers.size());
  const absl::Time deadline = absl::Now() + absl::FromChrono(options_.call_timeout);
  RETURN_IF_ERROR(InParallel(replies.size(), [&](size_t i) {
    return CallPeer(topology_->peers[i], deadline, true, &v1::MemoryService::Stub::PurgeBlocks, request, &replies[i]);
  }));
  // A server that slots moved to meanwhile may have got their blocks before they were purged.
  ASSIGN_OR_RETURN(const std::shared_ptr<const MemoryTopology> now, MemoryTopology::Load(options_));
  if (now->slot_map.epoch() != topology_->slot_map.epoch())
    return Aborted("the slot map changed from epoch {} to {} while {} was purged; purge it again", topology_->slot_map.epoch(),
                   now->slot_map.epoch(), text);
  // After their owners, so that what a replica copies from now on is free of the prefix.
  std::vector<MemoryPeer> replicas;
  for (const MemoryPeer& peer : topology_->peers)
    for (const MemoryReplica& replica : peer.replicas) replicas.push_back(PeerOf(replica));
  replies.resize(topology_->peers.size() + replicas.size());
  RETURN_IF_ERROR(InParallel(replicas.size(), [&](size_t i) {
    v1::PurgeBlocksReply* const reply = &replies[topology_->peers.size() + i];
    const absl::Time blocked = absl::Now() + kReplicaLag;
    while (true) {
      const absl::Status status = CallPeer(replicas[i], deadline, true, &v1::MemoryService::Stub::PurgeBlocks, request, reply);
      if (!absl::IsFailedPrecondition(status) || absl::Now() >= blocked) return status;
      absl::SleepFor(absl::Milliseconds(200));
    }
  }));
  PurgeSummary summary;
  for (const v1::PurgeBlocksReply& reply : replies) {
    summary.blocks += reply.blocks();
    summary.cuts += reply.cuts();
  }
  return summary;
}

}  // namespace membank
