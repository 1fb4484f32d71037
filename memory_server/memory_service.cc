#include "memory_server/memory_service.h"

#include "absl/time/clock.h"
#include "common/base/bytes.h"
#include "common/base/status_macros.h"
#include "common/base/version.h"
#include "common/rpc/status.h"
#include "common/rpc/training_wire.h"
#include "common/rpc/wire.h"
#include "memory_server/caller.h"
#include "memory_server/fetch_call.h"
#include "memory_server/push_call.h"
#include "memory_server/rpc_metrics.h"
#include "memory_server/slot_stream.h"

namespace membank {
namespace {

constexpr uint64_t kCheckpointPieceBytes = 1 << 20;

StepId FromProto(const v1::StepId& step) { return {step.run_id(), step.epoch(), step.step()}; }

// wait(until) -> absl::StatusOr<T>, until a little before the caller gives up by itself, so that it hears what it waited for.
template <typename Wait>
auto UntilDeadline(grpc::CallbackServerContext* context, const Wait& wait) -> decltype(wait(absl::Time())) {
  const absl::Duration left = absl::FromChrono(context->deadline()) - absl::Now();
  return WaitInSlices(absl::Now() + left - std::min(left / 4, absl::Seconds(1)), [context] { return context->IsCancelled(); }, wait);
}

void SetHeadStep(uint64_t step) {
  static prometheus::Gauge& gauge = GetGauge("membank_memory_head_step", "Last step applied to the live head");
  gauge.Set(static_cast<double>(step));
}

}  // namespace

MemoryService::MemoryService(Shard* shard, int read_threads, int max_waiting_calls)
    : shard_(shard), slots_(shard), readers_(read_threads), call_threads_(max_waiting_calls) {
  SetHeadStep(shard_->Status().head_step);
}

// work() -> absl::Status, on a thread of its own, when the caller may make this call; request and reply live until Finish.
template <typename Work>
grpc::ServerUnaryReactor* MemoryService::OnOwnThread(const char* rpc, grpc::CallbackServerContext* context, Work work) {
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  absl::Status started = shard_->access().CheckCall(CallerOf(*context), rpc);
  if (started.ok()) started = call_threads_.Start([reactor, work = std::move(work), timer = RpcTimer(rpc)] {
    const absl::Status status = work();
    timer.Done(status);
    reactor->Finish(ToGrpc(status));
  });
  if (!started.ok()) {
    RpcTimer(rpc).Done(started);
    reactor->Finish(ToGrpc(started));
  }
  return reactor;
}

grpc::ServerUnaryReactor* MemoryService::GetManifest(grpc::CallbackServerContext* context, const v1::GetManifestRequest*,
                                                     v1::Manifest* reply) {
  const RpcTimer timer("GetManifest");
  const ShardStatus status = shard_->Status();
  reply->set_wire_version(kWireVersion);
  ToProto(shard_->spec(), reply->mutable_spec());
  reply->set_spec_hash(shard_->spec_hash());
  reply->set_server_id(shard_->server_id());
  reply->set_slot_map_epoch(shard_->slot_map()->epoch());
  reply->set_head_step(status.head_step);
  reply->set_run_id(status.run_id);
  reply->set_run_epoch(status.run_epoch);
  for (const BankVersion& version : status.versions) {
    v1::BankVersion* const out = reply->add_versions();
    out->set_name(version.name);
    out->set_payload(ToProto(version.payload));
  }
  reply->set_touched_blocks(status.touched_blocks);
  reply->set_resident_bytes(status.resident_bytes);
  reply->set_software(VersionString());
  reply->set_durable_steps(status.durable_steps);
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  reactor->Finish(grpc::Status::OK);
  timer.Done(absl::OkStatus());
  return reactor;
}

grpc::ServerWriteReactor<grpc::ByteBuffer>* MemoryService::FetchBlocks(grpc::CallbackServerContext* context,
                                                                      const grpc::ByteBuffer* request) {
  return new FetchCall(shard_, &readers_, &call_threads_, context, request);
}

// Does not wait, so it needs no thread of its own.
grpc::ServerUnaryReactor* MemoryService::Prefetch(grpc::CallbackServerContext* context, const v1::PrefetchRequest* request,
                                                  v1::PrefetchReply*) {
  const RpcTimer timer("Prefetch");
  const auto prefetch = [&]() -> absl::Status {
    RETURN_IF_ERROR(shard_->access().CheckCall(CallerOf(*context), "Prefetch"));
    if (request->blocks_size() > static_cast<int>(kMaxBlocksPerCall))
      return InvalidArgument("the request names {} blocks; at most {} are allowed", request->blocks_size(), kMaxBlocksPerCall);
    std::vector<BlockId> ids;
    for (const v1::BlockId& block : request->blocks()) {
      ids.push_back(FromProto(block));
      RETURN_IF_ERROR(WithWrongSlot(*shard_, ids.back(), shard_->CheckBlock(ids.back())));
    }
    return shard_->Prefetch(ids);
  };
  const absl::Status status = prefetch();
  timer.Done(status);
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  reactor->Finish(ToGrpc(status));
  return reactor;
}

grpc::ServerReadReactor<grpc::ByteBuffer>* MemoryService::PushGradients(grpc::CallbackServerContext* context, grpc::ByteBuffer* response) {
  return new PushCall(shard_, context, response);
}

grpc::ServerUnaryReactor* MemoryService::BeginRun(grpc::CallbackServerContext* context, const v1::BeginRunRequest* request,
                                                  v1::BeginRunReply* reply) {
  return OnOwnThread("BeginRun", context, [this, request, reply]() -> absl::Status {
    RETURN_IF_ERROR(CheckEpoch(request->slot_map_epoch()));
    ASSIGN_OR_RETURN(RunSettings settings, FromProto(*request));
    ASSIGN_OR_RETURN(const uint64_t head, shard_->BeginRun(settings));
    reply->set_head_step(head);
    return absl::OkStatus();
  });
}

grpc::ServerUnaryReactor* MemoryService::JoinRun(grpc::CallbackServerContext* context, const v1::JoinRunRequest* request,
                                                 v1::JoinRunReply* reply) {
  return OnOwnThread("JoinRun", context, [this, context, request, reply]() -> absl::Status {
    const RunMember member{request->rank(), request->world_size(), request->member_id(), request->run_id(), request->epoch(),
                           request->description()};
    ASSIGN_OR_RETURN(const JoinedRun joined, UntilDeadline(context, [&](absl::Time until) { return shard_->JoinRun(member, until); }));
    reply->set_run_id(joined.run_id);
    reply->set_epoch(joined.epoch);
    reply->set_description(joined.description);
    return absl::OkStatus();
  });
}

grpc::ServerUnaryReactor* MemoryService::AwaitStep(grpc::CallbackServerContext* context, const v1::AwaitStepRequest* request,
                                                   v1::AwaitStepReply* reply) {
  return OnOwnThread("AwaitStep", context, [this, context, request, reply]() -> absl::Status {
    RETURN_IF_ERROR(CheckEpoch(request->step().slot_map_epoch()));
    ASSIGN_OR_RETURN(const std::vector<double> sums,
                     UntilDeadline(context, [&](absl::Time until) { return shard_->AwaitStep(FromProto(request->step()), until); }));
    reply->set_head_step(shard_->Status().head_step);
    reply->mutable_sums()->Assign(sums.begin(), sums.end());
    return absl::OkStatus();
  });
}

grpc::ServerUnaryReactor* MemoryService::PrepareStep(grpc::CallbackServerContext* context, const v1::PrepareStepRequest* request,
                                                     v1::PrepareStepReply* reply) {
  return OnOwnThread("PrepareStep", context, [this, context, request, reply]() -> absl::Status {
    RETURN_IF_ERROR(CheckEpoch(request->step().slot_map_epoch()));
    const auto sum = UntilDeadline(context, [&](absl::Time until) { return shard_->PrepareStep(FromProto(request->step()), until); });
    RETURN_IF_ERROR(sum.status());
    reply->set_sum_of_squares(*sum);
    return absl::OkStatus();
  });
}

grpc::ServerUnaryReactor* MemoryService::ApplyStep(grpc::CallbackServerContext* context, const v1::ApplyStepRequest* request,
                                                   v1::ApplyStepReply* reply) {
  return OnOwnThread("ApplyStep", context, [this, request, reply]() -> absl::Status {
    RETURN_IF_ERROR(CheckEpoch(request->step().slot_map_epoch()));
    ApplyParameters parameters{request->scale(), request->learning_rate(), request->weight_decay()};
    ASSIGN_OR_RETURN(const uint64_t head, shard_->ApplyStep(FromProto(request->step()), parameters));
    reply->set_head_step(head);
    SetHeadStep(head);
    return absl::OkStatus();
  });
}

absl::Status MemoryService::CheckEpoch(uint64_t callers_epoch) const {
  return WithWrongSlot(*shard_, BlockId{}, shard_->CheckSlotMapEpoch(callers_epoch));
}

absl::Status MemoryService::RunCheckpoint(const v1::CheckpointRequest& request) {
  switch (request.action()) {
    case v1::CHECKPOINT_ACTION_SNAPSHOT: return shard_->SnapshotCheckpoint(request.id(), request.step());
    case v1::CHECKPOINT_ACTION_PREPARE: return shard_->PrepareCheckpoint(request.id(), request.step());
    case v1::CHECKPOINT_ACTION_COMMIT: return shard_->CommitCheckpoint(request.id(), request.keep());
    case v1::CHECKPOINT_ACTION_ABORT: return shard_->AbortCheckpoint(request.id());
    case v1::CHECKPOINT_ACTION_DELETE: return shard_->DeleteCheckpoint(request.id());
    case v1::CHECKPOINT_ACTION_RESTORE: return shard_->RestoreCheckpoint(request.id());
    case v1::CHECKPOINT_ACTION_LIST: return absl::OkStatus();
    case v1::CHECKPOINT_ACTION_REWIND: return shard_->Rewind(request.step());
    default:
      return InvalidArgument("checkpoint action {} is unknown; allowed: PREPARE (1), COMMIT (2), ABORT (3), DELETE (4), RESTORE (5), LIST (6), REWIND (7), "
                             "VERIFY (8), SNAPSHOT (9)",
                             static_cast<int>(request.action()));
  }
}

grpc::ServerUnaryReactor* MemoryService::Checkpoint(grpc::CallbackServerContext* context, const v1::CheckpointRequest* request,
                                                    v1::CheckpointReply* reply) {
  return OnOwnThread("Checkpoint", context, [this, request, reply]() -> absl::Status {
    RETURN_IF_ERROR(CheckEpoch(request->slot_map_epoch()));
    if (request->action() == v1::CHECKPOINT_ACTION_VERIFY) {
      ASSIGN_OR_RETURN(const std::vector<std::string> damage, shard_->VerifyCheckpoint(request->id()));
      reply->mutable_damage()->Assign(damage.begin(), damage.end());
    } else {
      RETURN_IF_ERROR(RunCheckpoint(*request));
    }
    RETURN_IF_ERROR(CheckEpoch(request->slot_map_epoch()));  // again: slots may have moved while it waited
    for (const CheckpointInfo& info : shard_->ListCheckpoints()) {
      v1::CheckpointInfo* out = reply->add_checkpoints();
      out->set_id(info.id);
      out->set_step(info.step);
      out->set_committed(info.committed);
    }
    SetHeadStep(shard_->Status().head_step);
    return absl::OkStatus();
  });
}

grpc::ServerUnaryReactor* MemoryService::ReadCheckpoint(grpc::CallbackServerContext* context, const v1::ReadCheckpointRequest* request,
                                                        v1::ReadCheckpointReply* reply) {
  return OnOwnThread("ReadCheckpoint", context, [this, request, reply]() -> absl::Status {
    RETURN_IF_ERROR(CheckEpoch(request->slot_map_epoch()));
    return shard_->ReadCheckpoint(request->id(), {FromProto(request->block()), request->offset()}, kCheckpointPieceBytes,
                                  [reply](const CutReader::Piece& piece, const CutMarks& marks) {
                                    reply->set_data(piece.bytes.data(), piece.bytes.size());
                                    ToProto(piece.next.block, reply->mutable_next_block());
                                    reply->set_next_offset(piece.next.offset);
                                    reply->mutable_marks()->set_step(marks.step);
                                    reply->mutable_marks()->set_run_id(marks.run_id);
                                    reply->mutable_marks()->set_run_epoch(marks.run_epoch);
                                  });
  });
}

grpc::ServerUnaryReactor* MemoryService::WriteCheckpoint(grpc::CallbackServerContext* context, const v1::WriteCheckpointRequest* request,
                                                         v1::WriteCheckpointReply*) {
  return OnOwnThread("WriteCheckpoint", context, [this, request]() -> absl::Status {
    if (request->spec_hash() != shard_->spec_hash())
      return FailedPrecondition("the checkpoint belongs to a bank with spec hash {}, this bank's is {}", request->spec_hash(), shard_->spec_hash());
    const v1::CheckpointMarks& marks = request->marks();
    if (request->finish()) return shard_->FinishWriteCheckpoint(request->id(), {marks.step(), marks.run_id(), marks.run_epoch()});
    return shard_->WriteCheckpoint(request->id(), request->offset(), AsBytes(request->data()));
  });
}

grpc::ServerUnaryReactor* MemoryService::Publish(grpc::CallbackServerContext* context, const v1::PublishRequest* request,
                                                 v1::PublishReply* reply) {
  return OnOwnThread("Publish", context, [this, request, reply]() -> absl::Status {
    RETURN_IF_ERROR(CheckEpoch(request->slot_map_epoch()));
    ASSIGN_OR_RETURN(const PayloadType payload, FromProto(request->payload()));
    RETURN_IF_ERROR(shard_->Publish(request->checkpoint_id(), request->version(), payload));
    RETURN_IF_ERROR(CheckEpoch(request->slot_map_epoch()));
    for (const BankVersion& version : shard_->ListVersions()) reply->add_versions(version.name);
    return absl::OkStatus();
  });
}

grpc::ServerUnaryReactor* MemoryService::GetAccess(grpc::CallbackServerContext* context, const v1::GetAccessRequest*, v1::AccessTable* reply) {
  const RpcTimer timer("GetAccess");
  ToProto(*shard_->access().table(), reply);
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  reactor->Finish(grpc::Status::OK);
  timer.Done(absl::OkStatus());
  return reactor;
}

grpc::ServerUnaryReactor* MemoryService::SetAccess(grpc::CallbackServerContext* context, const v1::SetAccessRequest* request,
                                                   v1::SetAccessReply*) {
  return OnOwnThread("SetAccess", context, [this, context, request]() -> absl::Status {
    ASSIGN_OR_RETURN(const AccessTable table, FromProto(request->table()));
    return shard_->access().Replace(CallerOf(*context), table);
  });
}

grpc::ServerUnaryReactor* MemoryService::PurgeBlocks(grpc::CallbackServerContext* context, const v1::PurgeBlocksRequest* request,
                                                     v1::PurgeBlocksReply* reply) {
  return OnOwnThread("PurgeBlocks", context, [this, context, request, reply]() -> absl::Status {
    const TreePrefix prefix = FromProto(request->prefix());
    RETURN_IF_ERROR(shard_->access().CheckPurge(CallerOf(*context), prefix));
    ASSIGN_OR_RETURN(const PurgeResult result, shard_->Purge(prefix));
    reply->set_blocks(result.blocks);
    reply->set_cuts(result.cuts);
    return absl::OkStatus();
  });
}

// --- Slots ---------------------------------------------------------------------------------------------------------------------------------

void MemoryService::FollowSlotMap(std::unique_ptr<SlotMapSource> source, const TlsFiles& tls) {
  tls_ = tls;
  follower_ = std::make_unique<SlotMapFollower>(std::move(source), &slots_);
  if (!shard_->replica_of().empty()) replica_ = std::make_unique<ReplicaFollower>(shard_, &slots_, tls);
}

grpc::ServerUnaryReactor* MemoryService::GetSlots(grpc::CallbackServerContext* context, const v1::GetSlotsRequest*, v1::SlotsReply* reply) {
  return OnOwnThread("GetSlots", context, [this, reply] {
    const std::shared_ptr<const SlotMap> map = shard_->slot_map();
    ToProto(slots_.State(), reply);
    reply->set_server_id(shard_->server_id());
    reply->set_slot_map_epoch(map->epoch());
    reply->set_slots(FormatSlots(map->SlotsOf(shard_->server_id())));
    return absl::OkStatus();
  });
}

grpc::ServerWriteReactor<v1::ExportSlotsChunk>* MemoryService::ExportSlots(grpc::CallbackServerContext* context, const v1::ExportSlotsRequest* request) {
  return new ExportCall(shard_, &slots_, &call_threads_, context, *request);
}

absl::Status MemoryService::RunSlotMove(const v1::MoveSlotsRequest& request, absl::Time deadline, v1::MoveSlotsReply* reply) {
  if (follower_ == nullptr)
    return FailedPrecondition("server \"{}\" was started without --slot-map: it owns all slots, always", shard_->server_id());
  if (!shard_->replica_of().empty() && request.action() != v1::SLOT_MOVE_ACTION_RELOAD)
    return FailedPrecondition("server \"{}\" is a replica of \"{}\", it can own no slots", shard_->server_id(), shard_->replica_of());
  switch (request.action()) {
    case v1::SLOT_MOVE_ACTION_COPY:
    case v1::SLOT_MOVE_ACTION_FINISH: {
      ASSIGN_OR_RETURN(const SlotSet slots, ParseSlots(request.slots()));
      const bool last = request.action() == v1::SLOT_MOVE_ACTION_FINISH;
      ASSIGN_OR_RETURN(const SlotCopyResult copied, CopySlots(&slots_, shard_->spec_hash(), tls_, request.source_address(), request.move_id(), slots,
                                                              last, deadline));
      reply->set_blocks(copied.blocks);
      reply->set_bytes(copied.bytes);
      return absl::OkStatus();
    }
    case v1::SLOT_MOVE_ACTION_SEAL: {
      ASSIGN_OR_RETURN(const uint64_t first,
                       slots_.Seal(request.move_id(), request.at_least_step(), absl::Milliseconds(std::min<uint64_t>(request.lease_ms(), 60000))));
      reply->set_first_refused_step(first);
      return absl::OkStatus();
    }
    case v1::SLOT_MOVE_ACTION_AWAIT_SEALED: return slots_.AwaitSealed(request.move_id(), deadline);
    case v1::SLOT_MOVE_ACTION_RELEASE: slots_.Unseal(request.move_id(), /*keep_copy=*/true); return absl::OkStatus();
    case v1::SLOT_MOVE_ACTION_ABORT: slots_.Unseal(request.move_id(), /*keep_copy=*/false); return absl::OkStatus();
    case v1::SLOT_MOVE_ACTION_RELOAD: return follower_->Look();
    default:
      return InvalidArgument("slot move action {} is unknown; allowed: COPY (1), SEAL (2), AWAIT_SEALED (3), FINISH (4), ABORT (5), RELOAD (6), RELEASE (7)",
                             static_cast<int>(request.action()));
  }
}

grpc::ServerUnaryReactor* MemoryService::MoveSlots(grpc::CallbackServerContext* context, const v1::MoveSlotsRequest* request,
                                                   v1::MoveSlotsReply* reply) {
  return OnOwnThread("MoveSlots", context, [this, context, request, reply] {
    const absl::Status status = RunSlotMove(*request, absl::FromChrono(context->deadline()), reply);
    reply->set_slot_map_epoch(shard_->slot_map()->epoch());
    return status;
  });
}

}  // namespace membank
