#include "model_worker/train/checkpointer.h"

#include <chrono>

#include "common/base/file.h"
#include "common/base/log.h"
#include "common/base/status_macros.h"
#include "model_worker/model/weights.h"
#include "model_worker/train/anchor_init.h"

namespace membank {

Checkpointer::Checkpointer(MemoryClient* client, const RunDirectory* directory, const RunIdentity& identity, nlohmann::json description,
                           uint32_t keep, std::string anchor_path)
    : client_(client), directory_(directory), identity_(identity), description_(std::move(description)), keep_(keep),
      anchor_path_(std::move(anchor_path)) {}

Checkpointer::~Checkpointer() {
  if (writing_.valid()) writing_.wait();
}

absl::Status Checkpointer::Begin(uint64_t step, uint64_t server_step, const AnchorWeights& anchor, const AnchorOptimizer* optimizer) {
  RETURN_IF_ERROR(Wait().status());
  const std::string id = CheckpointId(identity_, step);
  if (optimizer != nullptr) {  // the next step changes the anchor
    last_ = Write(id, step, server_step, &anchor, optimizer);
    return last_.status();
  }
  RETURN_IF_ERROR(client_->SnapshotCheckpoint(id, server_step));
  writing_ = std::async(std::launch::async, [this, id, step, server_step] { return Write(id, step, server_step, nullptr, nullptr); });
  return absl::OkStatus();
}

absl::StatusOr<std::string> Checkpointer::Wait() {
  if (writing_.valid()) last_ = writing_.get();
  return last_;
}

absl::Status Checkpointer::Check() {
  if (writing_.valid() && writing_.wait_for(std::chrono::seconds(0)) == std::future_status::ready) last_ = writing_.get();
  return last_.status();
}

absl::StatusOr<std::string> Checkpointer::Write(const std::string& id, uint64_t step, uint64_t server_step, const AnchorWeights* anchor,
                                                const AnchorOptimizer* optimizer) const {
  const std::string path = directory_->CheckpointPath(id);
  RETURN_IF_ERROR(client_->PrepareCheckpoint(id, server_step));
  // Step 0 is the anchor as --anchor has it.
  absl::Status written = MakeDirectories(path);
  if (written.ok() && optimizer != nullptr && step > 0) written = WriteAnchor(path, *anchor, *optimizer);
  if (written.ok()) written = directory_->Commit({id, step, server_step, description_});
  if (!written.ok()) {
    const absl::Status aborted = client_->AbortCheckpoint(id);
    if (!aborted.ok()) LOG_WARN("aborting checkpoint {} failed, too: {}", id, aborted.ToString());
    return Annotate(written, fmt::format("checkpoint {}", id));
  }
  RETURN_IF_ERROR(client_->CommitCheckpoint(id, keep_));
  RETURN_IF_ERROR(DeleteOld());
  return id;
}

absl::Status Checkpointer::WriteAnchor(const std::string& path, const AnchorWeights& anchor, const AnchorOptimizer& optimizer) const {
  const std::string directory = path + kAnchorDirectory;
  RETURN_IF_ERROR(SaveAnchor(anchor, directory));
  RETURN_IF_ERROR(CopyTokenizerFiles(anchor_path_, directory));
  return optimizer.Save(path, 0);
}

absl::Status Checkpointer::DeleteOld() const {
  ASSIGN_OR_RETURN(const std::vector<RunCheckpoint> checkpoints, directory_->Checkpoints());
  for (size_t i = 0; i + keep_ < checkpoints.size(); ++i) {
    const std::string& id = checkpoints[i].id;
    RETURN_IF_ERROR(directory_->Uncommit(id));
    // The servers keep a number of their own and may have removed it at the commit.
    if (const absl::Status deleted = client_->DeleteCheckpoint(id); !deleted.ok() && !absl::IsNotFound(deleted)) return deleted;
    RETURN_IF_ERROR(directory_->RemoveFiles(id));
  }
  return absl::OkStatus();
}

}  // namespace membank
