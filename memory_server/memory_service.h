// The MemoryService of the wire over one Shard: check, call, map the error, fill the reply. Blocks and gradients travel as raw slices
// (fetch_call, push_call); what may wait or work long runs on threads of its own, never on gRPC's few.
// Thread-safe. Destroy it after RpcServer::Shutdown and before the shard.
#pragma once

#include "common/base/thread_pool.h"
#include "common/rpc/tls.h"
#include "membank/v1/memory.grpc.pb.h"
#include "memory_server/call_threads.h"
#include "memory_server/replica_follower.h"
#include "memory_server/shard.h"
#include "memory_server/slot_map_follower.h"
#include "memory_server/slot_move.h"

namespace membank {

using MemoryServiceBase = v1::MemoryService::WithCallbackMethod_GetManifest<v1::MemoryService::WithRawCallbackMethod_FetchBlocks<
    v1::MemoryService::WithRawCallbackMethod_PushGradients<v1::MemoryService::WithCallbackMethod_BeginRun<
        v1::MemoryService::WithCallbackMethod_PrepareStep<v1::MemoryService::WithCallbackMethod_ApplyStep<
            v1::MemoryService::WithCallbackMethod_JoinRun<v1::MemoryService::WithCallbackMethod_AwaitStep<
                v1::MemoryService::WithCallbackMethod_Checkpoint<v1::MemoryService::WithCallbackMethod_Publish<
                    v1::MemoryService::WithCallbackMethod_Prefetch<v1::MemoryService::WithCallbackMethod_GetAccess<
                        v1::MemoryService::WithCallbackMethod_SetAccess<v1::MemoryService::WithCallbackMethod_ReadCheckpoint<
                            v1::MemoryService::WithCallbackMethod_WriteCheckpoint<v1::MemoryService::WithCallbackMethod_PurgeBlocks<
                                v1::MemoryService::WithCallbackMethod_GetSlots<v1::MemoryService::WithCallbackMethod_ExportSlots<
                                    v1::MemoryService::WithCallbackMethod_MoveSlots<v1::MemoryService::Service>>>>>>>>>>>>>>>>>>>;

class MemoryService final : public MemoryServiceBase {
 public:
  // `max_waiting_calls`: calls that wait for a step or work on a step, checkpoint or version at once; more are RESOURCE_EXHAUSTED.
  MemoryService(Shard* shard, int read_threads, int max_waiting_calls);

  grpc::ServerUnaryReactor* GetManifest(grpc::CallbackServerContext* context, const v1::GetManifestRequest* request,
                                        v1::Manifest* reply) override;
  grpc::ServerWriteReactor<grpc::ByteBuffer>* FetchBlocks(grpc::CallbackServerContext* context, const grpc::ByteBuffer* request) override;
  grpc::ServerUnaryReactor* Prefetch(grpc::CallbackServerContext* context, const v1::PrefetchRequest* request,
                                     v1::PrefetchReply* reply) override;
  grpc::ServerReadReactor<grpc::ByteBuffer>* PushGradients(grpc::CallbackServerContext* context, grpc::ByteBuffer* response) override;
  grpc::ServerUnaryReactor* BeginRun(grpc::CallbackServerContext* context, const v1::BeginRunRequest* request,
                                     v1::BeginRunReply* reply) override;
  grpc::ServerUnaryReactor* PrepareStep(grpc::CallbackServerContext* context, const v1::PrepareStepRequest* request,
                                        v1::PrepareStepReply* reply) override;
  grpc::ServerUnaryReactor* JoinRun(grpc::CallbackServerContext* context, const v1::JoinRunRequest* request, v1::JoinRunReply* reply) override;
  grpc::ServerUnaryReactor* AwaitStep(grpc::CallbackServerContext* context, const v1::AwaitStepRequest* request,
                                      v1::AwaitStepReply* reply) override;
  grpc::ServerUnaryReactor* ApplyStep(grpc::CallbackServerContext* context, const v1::ApplyStepRequest* request,
                                      v1::ApplyStepReply* reply) override;
  grpc::ServerUnaryReactor* Checkpoint(grpc::CallbackServerContext* context, const v1::CheckpointRequest* request,
                                       v1::CheckpointReply* reply) override;
  grpc::ServerUnaryReactor* ReadCheckpoint(grpc::CallbackServerContext* context, const v1::ReadCheckpointRequest* request,
                                           v1::ReadCheckpointReply* reply) override;
  grpc::ServerUnaryReactor* WriteCheckpoint(grpc::CallbackServerContext* context, const v1::WriteCheckpointRequest* request,
                                            v1::WriteCheckpointReply* reply) override;
  grpc::ServerUnaryReactor* Publish(grpc::CallbackServerContext* context, const v1::PublishRequest* request,
                                    v1::PublishReply* reply) override;
  grpc::ServerUnaryReactor* GetAccess(grpc::CallbackServerContext* context, const v1::GetAccessRequest* request,
                                      v1::AccessTable* reply) override;
  grpc::ServerUnaryReactor* SetAccess(grpc::CallbackServerContext* context, const v1::SetAccessRequest* request,
                                      v1::SetAccessReply* reply) override;
  grpc::ServerUnaryReactor* PurgeBlocks(grpc::CallbackServerContext* context, const v1::PurgeBlocksRequest* request,
                                        v1::PurgeBlocksReply* reply) override;
  grpc::ServerUnaryReactor* GetSlots(grpc::CallbackServerContext* context, const v1::GetSlotsRequest* request,
                                     v1::SlotsReply* reply) override;
  grpc::ServerWriteReactor<v1::ExportSlotsChunk>* ExportSlots(grpc::CallbackServerContext* context,
                                                              const v1::ExportSlotsRequest* request) override;
  grpc::ServerUnaryReactor* MoveSlots(grpc::CallbackServerContext* context, const v1::MoveSlotsRequest* request,
                                      v1::MoveSlotsReply* reply) override;

  // From now on the shard follows the slot map at `source`: it looks every second, and when a move says so. A replica also follows its owner's
  // versions. `tls`: for copying from other servers. Call it once, before calls are served.
  void FollowSlotMap(std::unique_ptr<SlotMapSource> source, const TlsFiles& tls);

 private:
  template <typename Work>
  grpc::ServerUnaryReactor* OnOwnThread(const char* rpc, grpc::CallbackServerContext* context, Work work);
  absl::Status CheckEpoch(uint64_t callers_epoch) const;
  absl::Status RunCheckpoint(const v1::CheckpointRequest& request);
  absl::Status RunSlotMove(const v1::MoveSlotsRequest& request, absl::Time deadline, v1::MoveSlotsReply* reply);

  Shard* const shard_;
  SlotMover slots_;
  TlsFiles tls_;
  std::unique_ptr<SlotMapFollower> follower_;  // null: the slot map never changes
  std::unique_ptr<ReplicaFollower> replica_;   // of a replica
  ThreadPool readers_;
  CallThreads call_threads_;
};

}  // namespace membank
