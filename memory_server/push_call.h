// One PushGradients call: follows the chunks, copies every gradient once into a buffer of its own, checks it and hands it to the shard. Nothing
// counts before the last block arrived. Owns itself from construction to the end of the call; the shard outlives it.
#pragma once

#include <memory>
#include <optional>

#include "common/rpc/checked_copy.h"
#include "grpcpp/server_context.h"
#include "grpcpp/support/server_callback.h"
#include "membank/v1/memory.pb.h"
#include "memory_server/caller.h"
#include "memory_server/rpc_metrics.h"
#include "memory_server/shard.h"

namespace membank {

class PushCall final : public grpc::ServerReadReactor<grpc::ByteBuffer> {
 public:
  PushCall(Shard* shard, grpc::CallbackServerContext* context, grpc::ByteBuffer* response);

 private:
  void OnReadDone(bool ok) override;
  void OnDone() override;

  absl::Status Receive(const grpc::ByteBuffer& message);
  absl::Status BeginPush(const std::string& bytes);
  absl::Status BeginBlock(const std::string& bytes);
  absl::Status ExpectCrc(const std::string& bytes);
  absl::Status Append(absl::Span<const uint8_t> piece);
  absl::Status EndBlock();
  absl::Status Complete();
  void Acknowledge(PushOutcome outcome);
  void End(const absl::Status& status);

  Shard* const shard_;
  grpc::CallbackServerContext* const context_;
  grpc::ByteBuffer* const response_;
  const Caller caller_;
  const RpcTimer timer_{"PushGradients"};
  grpc::ByteBuffer message_;  // that is being read
  v1::PushHeader header_;
  std::unique_ptr<GradientPush> push_;  // set by the header
  uint32_t blocks_ = 0;                 // completed
  bool in_block_ = false;
  BlockId id_;
  Gradient gradient_;
  CheckedCopy copy_;    // into gradient_.bytes
  SquareSum squares_;   // of what has been received
  std::optional<uint32_t> expected_crc_;  // of the chunk
  uint64_t total_bytes_ = 0;
};

}  // namespace membank
