#include "common/client/checkpoint_client.h"

#include "absl/time/clock.h"
#include "common/base/status_macros.h"
#include "common/client/peer_call.h"
#include "common/rpc/wire.h"

namespace membank {
namespace {

class RpcCheckpointClient final : public CheckpointClient {
 public:
  RpcCheckpointClient(const MemoryClientOptions& options, std::shared_ptr<const MemoryTopology> topology, std::string spec_hash)
      : options_(options), topology_(std::move(topology)), spec_hash_(std::move(spec_hash)) {}

  const SlotMap& slot_map() const override { return topology_->slot_map; }

  absl::StatusOr<std::vector<std::string>> Verify(const std::string& id) override {
    v1::CheckpointRequest request;
    request.set_action(v1::CHECKPOINT_ACTION_VERIFY);
    request.set_id(id);
    std::vector<v1::CheckpointReply> replies(topology_->peers.size());
    RETURN_IF_ERROR(InParallel(replies.size(), [&](size_t i) { return Call(i, &v1::MemoryService::Stub::Checkpoint, request, &replies[i]); }));
    std::vector<std::string> damage;
    for (const v1::CheckpointReply& reply : replies) damage.insert(damage.end(), reply.damage().begin(), reply.damage().end());
    return damage;
  }

  absl::StatusOr<CheckpointPiece> Read(size_t server, const std::string& id, BlockId block, uint64_t offset, CheckpointHistory* history) override {
    v1::ReadCheckpointRequest request;
    request.set_id(id);
    ToProto(block, request.mutable_block());
    request.set_offset(offset);
    if (!options_.slot_map_path.empty()) request.set_slot_map_epoch(topology_->slot_map.epoch());
    v1::ReadCheckpointReply reply;
    RETURN_IF_ERROR(Call(server, &v1::MemoryService::Stub::ReadCheckpoint, request, &reply));
    *history = {reply.marks().step(), reply.marks().run_id(), reply.marks().run_epoch()};
    return CheckpointPiece{std::move(*reply.mutable_data()), FromProto(reply.next_block()), reply.next_offset()};
  }

  absl::Status Write(size_t server, const std::string& id, uint64_t offset, std::string data) override {
    v1::WriteCheckpointRequest request;
    request.set_id(id);
    request.set_offset(offset);
    request.set_data(std::move(data));
    request.set_spec_hash(spec_hash_);
    v1::WriteCheckpointReply reply;
    return Call(server, &v1::MemoryService::Stub::WriteCheckpoint, request, &reply);
  }

  absl::Status Finish(size_t server, const std::string& id, const CheckpointHistory& history) override {
    v1::WriteCheckpointRequest request;
    request.set_id(id);
    request.set_finish(true);
    request.mutable_marks()->set_step(history.step);
    request.mutable_marks()->set_run_id(history.run_id);
    request.mutable_marks()->set_run_epoch(history.run_epoch);
    request.set_spec_hash(spec_hash_);
    v1::WriteCheckpointReply reply;
    return Call(server, &v1::MemoryService::Stub::WriteCheckpoint, request, &reply);
  }

 private:
  template <typename Request, typename Reply>
  absl::Status Call(size_t server, grpc::Status (v1::MemoryService::Stub::*method)(grpc::ClientContext*, const Request&, Reply*),
                    const Request& request, Reply* reply) const {
    return CallPeer(topology_->peers[server], absl::Now() + absl::FromChrono(options_.call_timeout), true, method, request, reply);
  }

  const MemoryClientOptions options_;
  const std::shared_ptr<const MemoryTopology> topology_;
  const std::string spec_hash_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<CheckpointClient>> CheckpointClient::Connect(const MemoryClientOptions& options) {
  ASSIGN_OR_RETURN(const std::unique_ptr<MemoryClient> client, MemoryClient::Connect(options));  // the servers hold one bank
  ASSIGN_OR_RETURN(std::shared_ptr<const MemoryTopology> topology, MemoryTopology::Load(options));
  return std::make_unique<RpcCheckpointClient>(options, std::move(topology), client->spec().Hash());
}

}  // namespace membank
