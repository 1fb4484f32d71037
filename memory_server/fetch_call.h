// One FetchBlocks call: reads the blocks in request order, the next one while the current one is being sent, and writes them as chunks that
// borrow the shard's payloads. Owns itself from construction to the end of the call. The shard and the pools outlive it.
#pragma once

#include <atomic>
#include <memory>
#include <optional>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "common/base/thread_pool.h"
#include "grpcpp/server_context.h"
#include "grpcpp/support/server_callback.h"
#include "membank/v1/memory.pb.h"
#include "memory_server/call_threads.h"
#include "memory_server/caller.h"
#include "memory_server/rpc_metrics.h"
#include "memory_server/shard.h"

namespace membank {

class FetchCall final : public grpc::ServerWriteReactor<grpc::ByteBuffer> {
 public:
  // Checks the request and starts. `readers` runs the reads, `waiters` the wait for request.min_step.
  FetchCall(Shard* shard, ThreadPool* readers, CallThreads* waiters, grpc::CallbackServerContext* context, const grpc::ByteBuffer* request);

 private:
  void OnWriteDone(bool ok) override;
  void OnCancel() override;
  void OnDone() override;

  void Start(const grpc::ByteBuffer& request);
  absl::Status Parse(const grpc::ByteBuffer& request);
  absl::Status Check() const;
  void WaitThenStart(absl::Time deadline);
  // The reader: one read at a time, at most one block ahead of the writer; of a block in RAM at once, of others on a thread of `readers`.
  void ReadNext() ABSL_LOCKS_EXCLUDED(mu_);
  // The writer: called whenever no write is in flight and the block it needs may be there.
  void WriteNext() ABSL_LOCKS_EXCLUDED(mu_);
  // A block that the caller may read: as it is, or as blocked.
  absl::StatusOr<BlockRead> ReadBlock(int index, ReadFrom from);
  // ABORTED when the block was blocked after it was read.
  absl::Status CheckStillServed() const;
  void WriteChunk();
  void End(const absl::Status& status);

  Shard* const shard_;
  ThreadPool* const readers_;
  CallThreads* const waiters_;
  grpc::CallbackServerContext* const context_;
  const Caller caller_;
  const RpcTimer timer_{"FetchBlocks"};
  v1::FetchBlocksRequest request_;

  // Of the writer alone.
  BlockRead current_;
  absl::Status revoked_;         // set: the call ends with it
  size_t written_ = 0;           // bytes of current_
  int sent_blocks_ = 0;          // blocks begun
  uint64_t sent_bytes_ = 0;      // of all blocks
  grpc::ByteBuffer message_;     // in flight

  std::atomic<bool> cancelled_{false};
  absl::Mutex mu_;
  bool reading_ ABSL_GUARDED_BY(mu_) = false;
  bool writer_waits_ ABSL_GUARDED_BY(mu_) = false;
  int next_read_ ABSL_GUARDED_BY(mu_) = 0;
  std::optional<absl::StatusOr<BlockRead>> ahead_ ABSL_GUARDED_BY(mu_);
};

// `status` with the shard's slot-map epoch as the wire's WrongSlot detail, when it is about a block of another server.
absl::Status WithWrongSlot(const Shard& shard, BlockId id, absl::Status status);

}  // namespace membank
