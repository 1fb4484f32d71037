#include "model_worker/train/run_setup.h"

#include <algorithm>
#include <filesystem>
#include <set>

#include "common/bank/gradient_codec.h"
#include "common/base/log.h"
#include "common/base/random_id.h"
#include "common/base/status_macros.h"
#include "model_worker/model/bank_levels.h"

namespace membank {
namespace {

// Unique per run; names it at the servers and in checkpoint ids. It has no part in the numbers.
std::string NewRunId() {
  return fmt::format("run-{:016x}", RandomId());
}

absl::Status BeginRun(const TrainOptions& options, const RunIdentity& identity, uint64_t head, MemoryClient& client) {
  RunSettings settings;
  settings.run_id = identity.run_id;
  settings.epoch = identity.epoch;
  settings.world_size = options.world_size;
  settings.staleness = options.staleness;
  settings.first_step = head + 1;
  settings.optimizer = options.optimizer;
  settings.decay = options.decay;
  settings.stochastic_rounding = !options.master_weights;
  settings.beta1 = static_cast<float>(options.beta1);
  settings.beta2 = static_cast<float>(options.beta2);
  settings.epsilon = static_cast<float>(options.epsilon);
  RETURN_IF_ERROR(client.BeginRun(settings));
  ASSIGN_OR_RETURN(const BankStatus status, client.GetStatus());
  if (status.head_step != head)
    return Aborted("the bank is at step {} but run {} begins at {}: another trainer wrote to it meanwhile. Stop it and start again",
                   status.head_step, identity.run_id, head);
  return absl::OkStatus();
}

// Where the servers have every step of this run since `checkpoint`: there. Else at the checkpoint, which is also where servers meet of which
// one cannot go back as far as another one is.
absl::StatusOr<uint64_t> BringServersTo(const RunCheckpoint& checkpoint, const RunIdentity& identity, const TrainOptions& options,
                                        MemoryClient& client) {
  ASSIGN_OR_RETURN(const BankStatus status, client.GetStatus());
  const bool kept = status.durable_steps && status.run_id == identity.run_id && status.head_step >= checkpoint.server_step;
  // A trainer's own state (a learning anchor, the error feedback of int8 gradients) and what other ranks know are of the checkpoint.
  const bool stateless = options.mode == TrainMode::kFrozen && options.world_size == 1 && options.EffectiveGradientDType() != kI8Rows;
  if (stateless && kept) {
    const absl::Status rewound = client.Rewind(status.head_step);
    if (rewound.ok()) {
      LOG_INFO("resuming {} from step {}, the last one that all servers have", identity.run_id, status.head_step - identity.base_step);
      return status.head_step;
    }
    if (!absl::IsOutOfRange(rewound)) return rewound;
    LOG_WARN("{}: the servers have only the checkpoint in common", std::string(rewound.message()));  // slots have moved since that step
  }
  RETURN_IF_ERROR(client.RestoreCheckpoint(checkpoint.id));
  LOG_INFO("resuming {} from step {} (checkpoint {})", identity.run_id, checkpoint.step, checkpoint.id);
  return checkpoint.server_step;
}

}  // namespace

absl::Status CheckCorpusFits(const PackedInfo& corpus, const ModelConfig& anchor, const std::string& tokenizer_hash) {
  if (corpus.tokenizer_hash != tokenizer_hash)
    return FailedPrecondition("the corpus was packed with tokenizer {}; the anchor's is {}. Pack it again with the anchor's tokenizer",
                              corpus.tokenizer_hash, tokenizer_hash);
  if (corpus.vocab_size > anchor.vocab)
    return FailedPrecondition("the corpus has token ids up to {}; the anchor's vocabulary is {}", corpus.vocab_size, anchor.vocab);
  if (corpus.sequence_length > anchor.context)
    return FailedPrecondition("the corpus has sequences of up to {} tokens; the anchor's context is {}. Pack it with a shorter length",
                              corpus.sequence_length, anchor.context);
  if (corpus.sequences == 0) return absl::FailedPreconditionError("the corpus holds no sequences");
  return absl::OkStatus();
}

absl::Status CheckBankFits(const BankSpec& spec, const PackedInfo& corpus, const ModelConfig& anchor, const std::string& anchor_fingerprint) {
  RETURN_IF_ERROR(spec.CheckFits(AnchorShapeOf(anchor)));
  if (spec.anchor_fingerprint != anchor_fingerprint)
    return FailedPrecondition("bank {} belongs to anchor {}; --anchor is {}. Give the bank's anchor or create another bank", spec.bank_id,
                              spec.anchor_fingerprint, anchor_fingerprint);
  if (spec.tree_fingerprint != corpus.tree_fingerprint)
    return FailedPrecondition("bank {} belongs to cluster tree {}; the corpus was packed with tree {}. Pack the corpus with the bank's tree",
                              spec.bank_id, spec.tree_fingerprint, corpus.tree_fingerprint);
  if (spec.fan_out != corpus.fan_out || spec.depth() != corpus.depth)
    return FailedPrecondition("bank {} has fan-out {} and depth {}; the corpus has {} and {}", spec.bank_id, spec.fan_out, spec.depth(),
                              corpus.fan_out, corpus.depth);
  return absl::OkStatus();
}

absl::StatusOr<StartPoint> StartOrResume(const TrainOptions& options, const nlohmann::json& description, const RunDirectory& directory,
                                         MemoryClient& client) {
  StartPoint start;
  ASSIGN_OR_RETURN(const std::vector<RunCheckpoint> checkpoints, directory.Checkpoints());
  if (!checkpoints.empty() && !options.resume)
    return FailedPrecondition("{} holds a run (step {}) and --resume is never; use --resume auto or another --output", directory.path(),
                              checkpoints.back().step);
  uint64_t head = 0;
  if (!checkpoints.empty()) {
    start.checkpoint = checkpoints.back();
    RETURN_IF_ERROR(CompareRuns(start.checkpoint.run, description, directory.path()));
    ASSIGN_OR_RETURN(const std::vector<std::string> damage, RunDirectory::Verify(directory.path(), start.checkpoint.id));
    if (!damage.empty())
      return DataLoss("checkpoint {} of {} is damaged: {}; bring the file back from a copy, or remove {}/manifest.json to resume from the checkpoint before",
                      start.checkpoint.id, directory.path(), damage.front(), directory.CheckpointPath(start.checkpoint.id));
    ASSIGN_OR_RETURN(start.identity, directory.ReadIdentity());
    ASSIGN_OR_RETURN(head, BringServersTo(start.checkpoint, start.identity, options, client));
    start.step = head - start.identity.base_step;
  }
  ASSIGN_OR_RETURN(const BankStatus status, client.GetStatus());
  if (checkpoints.empty()) {
    head = status.head_step;
    start.identity = {NewRunId(), 0, head};
  }
  // The directory remembers the epoch, too: a server that lost its memory with the crash must not see an old one again.
  start.identity.epoch = std::max(start.identity.epoch, status.run_epoch) + 1;
  RETURN_IF_ERROR(directory.WriteIdentity(start.identity));
  RETURN_IF_ERROR(BeginRun(options, start.identity, head, client));
  return start;
}

absl::Status RemoveOrphans(const RunDirectory& directory, const std::string& run_id, MemoryClient& client) {
  ASSIGN_OR_RETURN(const std::vector<RunCheckpoint> committed, directory.Checkpoints());
  std::set<std::string> keep;
  for (const RunCheckpoint& checkpoint : committed) keep.insert(checkpoint.id);
  ASSIGN_OR_RETURN(const std::vector<CheckpointInfo> at_servers, client.ListCheckpoints());
  for (const CheckpointInfo& checkpoint : at_servers) {
    if (checkpoint.id.rfind(run_id + "-", 0) != 0 || keep.contains(checkpoint.id)) continue;
    const absl::Status removed = checkpoint.committed ? client.DeleteCheckpoint(checkpoint.id) : client.AbortCheckpoint(checkpoint.id);
    if (!removed.ok() && !absl::IsNotFound(removed)) return removed;
  }
  std::error_code error;
  std::vector<std::string> local;
  for (const auto& entry : std::filesystem::directory_iterator(directory.path() + "/checkpoints", error)) local.push_back(entry.path().filename());
  for (const std::string& id : local)
    if (!keep.contains(id)) RETURN_IF_ERROR(directory.RemoveFiles(id));
  return absl::OkStatus();
}

}  // namespace membank
