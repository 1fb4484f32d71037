// Two-phase checkpoints of a run over worker and servers (design/promises.md P1, P3): the servers prepare a durable cut, the worker writes
// its own state, the manifest's atomic rename commits both, then the servers are told and the oldest checkpoints go. A crash at any point
// leaves the last committed one whole. With a frozen anchor all of it happens beside the steps that go on: the servers remember their heads
// (copy-on-write), a thread does the rest. Owned by the trainer, which calls everything from its one thread.
#pragma once

#include <future>
#include <string>

#include "absl/status/statusor.h"
#include "common/client/memory_client.h"
#include "model_worker/model/transformer.h"
#include "model_worker/train/anchor_optimizer.h"
#include "model_worker/train/run_directory.h"

namespace membank {

class Checkpointer {
 public:
  // `optimizer` is null when the anchor is frozen. `anchor_path` is where the tokenizer's files are copied from, so that a saved anchor loads alone.
  Checkpointer(MemoryClient* client, const RunDirectory* directory, const RunIdentity& identity, nlohmann::json description, uint32_t keep,
               std::string anchor_path);
  ~Checkpointer();  // waits for the one on its way
  Checkpointer(const Checkpointer&) = delete;
  Checkpointer& operator=(const Checkpointer&) = delete;

  // Waits for the checkpoint before. No update may be in flight; when it returns, updates may go on.
  absl::Status Begin(uint64_t step, uint64_t server_step, const AnchorWeights& anchor, const AnchorOptimizer* optimizer);
  // Waits until the checkpoint begun last is committed; its id. Its error is returned by every later call.
  absl::StatusOr<std::string> Wait();
  // An error that is known already, without waiting.
  absl::Status Check();

 private:
  absl::StatusOr<std::string> Write(const std::string& id, uint64_t step, uint64_t server_step, const AnchorWeights* anchor,
                                    const AnchorOptimizer* optimizer) const;
  absl::Status WriteAnchor(const std::string& path, const AnchorWeights& anchor, const AnchorOptimizer& optimizer) const;
  absl::Status DeleteOld() const;

  MemoryClient* const client_;
  const RunDirectory* const directory_;
  const RunIdentity identity_;
  const nlohmann::json description_;
  const uint32_t keep_;
  const std::string anchor_path_;
  std::future<absl::StatusOr<std::string>> writing_;
  absl::StatusOr<std::string> last_ = std::string();
};

inline constexpr char kAnchorDirectory[] = "/anchor";  // in a checkpoint, when the anchor learns

}  // namespace membank
