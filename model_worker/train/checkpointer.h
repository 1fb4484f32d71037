// Two-phase checkpoints of a run over worker and servers (design/promises.md P1, P3): the servers prepare a durable cut, the worker writes
// its own state, the manifest's atomic rename commits both, then the servers are told and the oldest checkpoints go. A crash at any point
// leaves the last committed one whole. Owned by the trainer; one thread; no update may be in flight.
#pragma once

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

  // Returns the checkpoint's id.
  absl::StatusOr<std::string> Write(uint64_t step, uint64_t server_step, const AnchorWeights& anchor, const AnchorOptimizer* optimizer);

 private:
  absl::Status WriteAnchor(const std::string& path, const AnchorWeights& anchor, const AnchorOptimizer& optimizer) const;
  absl::Status DeleteOld() const;

  MemoryClient* const client_;
  const RunDirectory* const directory_;
  const RunIdentity identity_;
  const nlohmann::json description_;
  const uint32_t keep_;
  const std::string anchor_path_;
};

inline constexpr char kAnchorDirectory[] = "/anchor";                              // in a checkpoint, when co-training
inline constexpr char kAnchorOptimizerFile[] = "/anchor_optimizer.safetensors";

}  // namespace membank
