#include "common/client/access_client.h"

#include <algorithm>
#include <thread>
#include <vector>

#include "absl/time/clock.h"
#include "common/base/status_macros.h"
#include "common/client/retry.h"
#include "common/client/topology.h"
#include "common/rpc/status.h"
#include "common/rpc/wire.h"
#include "grpcpp/client_context.h"

namespace membank {
namespace {

// One call to every peer at once; a status per peer.
std::vector<absl::Status> CallAll(const MemoryTopology& topology, absl::Time deadline,
                                  const std::function<grpc::Status(size_t, v1::MemoryService::Stub*, grpc::ClientContext*)>& call) {
  std::vector<absl::Status> results(topology.peers.size());
  std::vector<std::thread> threads;
  for (size_t i = 0; i < results.size(); ++i) {
    threads.emplace_back([&, i] {
      results[i] = RetryWhileUnavailable(deadline, [&](bool wait) {
        grpc::ClientContext context;
        context.set_deadline(absl::ToChronoTime(deadline));
        context.set_wait_for_ready(wait);
        return FromGrpc(call(i, topology.peers[i].stub.get(), &context), topology.peers[i].name);
      });
    });
  }
  for (std::thread& thread : threads) thread.join();
  return results;
}

absl::Status First(const std::vector<absl::Status>& statuses) {
  for (const absl::Status& status : statuses) RETURN_IF_ERROR(status);
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::unique_ptr<AccessClient>> AccessClient::Create(const MemoryClientOptions& options) {
  MemoryClientOptions one = options;
  one.channels_per_server = 1;
  ASSIGN_OR_RETURN(std::shared_ptr<const MemoryTopology> topology, MemoryTopology::Load(one));
  return std::unique_ptr<AccessClient>(new AccessClient(one, std::move(topology)));
}

absl::StatusOr<AccessTable> AccessClient::Read(std::chrono::milliseconds timeout) const {
  const absl::Time deadline = absl::Now() + absl::FromChrono(timeout);
  std::vector<v1::AccessTable> tables(topology_->peers.size());
  const std::vector<absl::Status> statuses = CallAll(*topology_, deadline, [&](size_t i, auto* stub, grpc::ClientContext* context) {
    return stub->GetAccess(context, {}, &tables[i]);
  });
  const v1::AccessTable* newest = nullptr;
  for (size_t i = 0; i < tables.size(); ++i) {
    if (statuses[i].ok() && (newest == nullptr || tables[i].epoch() > newest->epoch())) newest = &tables[i];
  }
  if (newest == nullptr) return First(statuses);
  return FromProto(*newest);
}

absl::StatusOr<BankSpec> AccessClient::Spec() const {
  v1::Manifest manifest;
  const absl::Time deadline = absl::Now() + absl::FromChrono(options_.connect_timeout);
  const MemoryPeer& peer = topology_->peers[0];
  RETURN_IF_ERROR(RetryWhileUnavailable(deadline, [&](bool wait) {
    grpc::ClientContext context;
    context.set_deadline(absl::ToChronoTime(deadline));
    context.set_wait_for_ready(wait);
    return FromGrpc(peer.stub->GetManifest(&context, {}, &manifest), peer.name);
  }));
  return FromProto(manifest.spec());
}

absl::StatusOr<AccessTable> AccessClient::Change(const std::function<absl::Status(const BankSpec&, AccessTable*)>& change) const {
  ASSIGN_OR_RETURN(const BankSpec spec, Spec());
  const absl::Time deadline = absl::Now() + absl::FromChrono(options_.call_timeout);
  std::vector<v1::AccessTable> tables(topology_->peers.size());
  RETURN_IF_ERROR(First(CallAll(*topology_, deadline, [&](size_t i, auto* stub, grpc::ClientContext* context) {
    return stub->GetAccess(context, {}, &tables[i]);
  })));
  const auto newest = std::max_element(tables.begin(), tables.end(), [](const auto& a, const auto& b) { return a.epoch() < b.epoch(); });
  ASSIGN_OR_RETURN(AccessTable table, FromProto(*newest));
  RETURN_IF_ERROR(change(spec, &table));
  ++table.epoch;
  RETURN_IF_ERROR(table.Validate(spec.fan_out, spec.depth()));
  v1::SetAccessRequest request;
  ToProto(table, request.mutable_table());
  RETURN_IF_ERROR(First(CallAll(*topology_, deadline, [&](size_t, auto* stub, grpc::ClientContext* context) {
    v1::SetAccessReply reply;
    return stub->SetAccess(context, request, &reply);
  })));
  return table;
}

}  // namespace membank
