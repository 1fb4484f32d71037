// What happens before the first step: do anchor, corpus, tree and bank belong together; is there a run to continue; what do the servers
// have to be told. Called once by the trainer; one thread.
#pragma once

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "common/client/memory_client.h"
#include "common/corpus/packed.h"
#include "model_worker/model/transformer.h"
#include "model_worker/train/options.h"
#include "model_worker/train/run_directory.h"

namespace membank {

// FAILED_PRECONDITION names both sides and what to do.
absl::Status CheckCorpusFits(const PackedInfo& corpus, const ModelConfig& anchor, const std::string& tokenizer_hash);
absl::Status CheckBankFits(const BankSpec& spec, const PackedInfo& corpus, const ModelConfig& anchor, const std::string& anchor_fingerprint);

struct StartPoint {
  RunIdentity identity;          // with this start's epoch
  RunCheckpoint checkpoint;      // the newest one; id empty for a new run
  uint64_t step = 0;             // done: the checkpoint's, or later when the servers kept every step
};

// Finds the run in `directory`, brings the servers to its newest checkpoint and begins a new epoch, which fences every older trainer of the
// run. A new run begins at the servers' head. With a frozen anchor and servers of durability class "step" nothing is repeated: everything
// else a step depends on (its sequences, which of them use the generic memory, its learning rate) is a function of seed and step, so the run
// goes on from the last step that all servers have; those that are one ahead go back to it.
absl::StatusOr<StartPoint> StartOrResume(const TrainOptions& options, const nlohmann::json& description, const RunDirectory& directory,
                                         MemoryClient& client);

// Removes what crashes left: checkpoints of this run at the servers and in the directory that no manifest committed.
absl::Status RemoveOrphans(const RunDirectory& directory, const std::string& run_id, MemoryClient& client);

}  // namespace membank
