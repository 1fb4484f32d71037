// The client for what is done to checkpoints of single servers: copying their bytes out and in, and verifying them. MemoryClient has what is
// done to all servers as one. Plain structs, no gRPC or protobuf here. Calls block until done or timed out and are retried while a server
// is away; any thread. Errors name the server.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "common/client/memory_client.h"

namespace membank {

struct CheckpointPiece {
  std::string data;            // empty: no block is left
  BlockId next_block;          // where to go on
  uint64_t next_offset = 0;
};

// The history that a checkpoint belongs to.
struct CheckpointHistory {
  uint64_t step = 0;
  std::string run_id;
  uint64_t run_epoch = 0;

  bool operator==(const CheckpointHistory&) const = default;
};

class CheckpointClient {
 public:
  static absl::StatusOr<std::unique_ptr<CheckpointClient>> Connect(const MemoryClientOptions& options);
  virtual ~CheckpointClient() = default;

  virtual const SlotMap& slot_map() const = 0;  // servers are numbered as in it
  // Reads every byte of the checkpoint on every server; what is damaged.
  virtual absl::StatusOr<std::vector<std::string>> Verify(const std::string& id) = 0;

  // The server's blocks as a stream of frames (common/bank/block_frame.h). Begin with block 0/0, offset 0.
  virtual absl::StatusOr<CheckpointPiece> Read(size_t server, const std::string& id, BlockId block, uint64_t offset, CheckpointHistory* history) = 0;
  // Brings the frames of the server's blocks in, in ascending order; offset 0 begins anew. Finish makes them a prepared checkpoint.
  virtual absl::Status Write(size_t server, const std::string& id, uint64_t offset, std::string data) = 0;
  virtual absl::Status Finish(size_t server, const std::string& id, const CheckpointHistory& history) = 0;
};

}  // namespace membank
