// Durability class "step": what the shard logs, and how it comes back from the log. See shard.h and step_log.h.
#include <algorithm>
#include <utility>

#include "common/bank/gradient_codec.h"
#include "common/base/log.h"
#include "common/base/status_macros.h"
#include "memory_server/shard.h"
#include "memory_server/shard_state.h"

namespace membank {
namespace {

LogBase BaseOf(const std::optional<Cut>& cut) { return cut.has_value() ? LogBase{cut->id, cut->marks} : LogBase{}; }

}  // namespace

absl::Status Shard::LogGradients(const RunSettings& run, uint64_t step, PendingStep* pending) {
  if (options_.durability != Durability::kStep) return absl::OkStatus();
  uint64_t bytes = 0;
  for (const auto& [id, gradient] : pending->sum) bytes += gradient.bytes.size();
  RETURN_IF_ERROR(CheckFreeSpace(bytes));
  RETURN_IF_ERROR(step_log_->WriteGradients(run, step, pending->sum));
  pending->log_segment = step_log_->segment();
  return absl::OkStatus();
}

absl::Status Shard::LogApply(const RunSettings& run, uint64_t step, const ApplyParameters& parameters, PendingStep* pending) {
  if (options_.durability != Durability::kStep || pending->logged) return absl::OkStatus();
  // A checkpoint may have begun a new segment since the step was prepared.
  if (pending->log_segment != step_log_->segment()) RETURN_IF_ERROR(LogGradients(run, step, pending));
  RETURN_IF_ERROR(step_log_->WriteApply(step, parameters));
  pending->logged = true;
  return absl::OkStatus();
}

absl::Status Shard::LogCut(const std::string& id, const CutMarks& marks) {
  return options_.durability == Durability::kStep ? step_log_->Begin({id, marks}, ownership_.slots(), /*continues=*/true) : absl::OkStatus();
}

absl::Status Shard::LogRestore(const std::optional<Cut>& cut, const SlotSet& slots) {
  slots_since_ = 0;
  return options_.durability == Durability::kStep ? step_log_->Begin(BaseOf(cut), slots, /*continues=*/false) : step_log_->Clear();
}

absl::Status Shard::LogCommit(const Cut& cut) {
  return options_.durability == Durability::kStep ? step_log_->RemoveBefore(BaseOf(cut)) : step_log_->Clear();
}

// Steps that were logged under "step" count under "checkpoint", too, until the next checkpoint is committed.
absl::Status Shard::OpenLog(const std::optional<Cut>& cut) {
  ASSIGN_OR_RETURN(step_log_, StepLog::Open(options_.data_directory + "/steps", spec_hash_));
  ASSIGN_OR_RETURN(const SlotSet logged, ReplayLog(cut, ~uint64_t{0}));
  const SlotSet slots = ownership_.slots(), missed = slots & ~logged;
  if (missed.any()) {  // they became this server's without a finished copy
    LOG_WARN("the step log lacks steps of slots {}: this server goes back to {}", FormatSlots(missed),
             cut.has_value() ? "checkpoint " + cut->id : "an untouched bank");
    return GiveUpStepsSince(cut, *ownership_.map());
  }
  if (options_.durability != Durability::kStep) return absl::OkStatus();
  if (step_log_->empty()) return step_log_->Begin(BaseOf(cut), slots, /*continues=*/false);
  return slots == logged ? absl::OkStatus() : step_log_->WriteOwned(slots);
}

absl::StatusOr<SlotSet> Shard::ReplayLog(const std::optional<Cut>& cut, uint64_t last_step) {
  LogReplay replay;  // train_mu_ is held
  replay.apply = [this](LoggedStep logged) ABSL_NO_THREAD_SAFETY_ANALYSIS { return ApplyLogged(std::move(logged)); };
  replay.take = [this](const SlotsTaken& taken, const std::vector<LoggedImage>& images)
                    ABSL_NO_THREAD_SAFETY_ANALYSIS { return TakeLogged(taken, images, ownership_.slots()); };
  return step_log_->Replay(BaseOf(cut), ownership_.slots(), last_step, replay);
}

absl::Status Shard::ApplyLogged(LoggedStep logged) {
  const SlotSet slots = ownership_.slots();
  std::erase_if(logged.gradients, [&](const auto& gradient) { return !slots[SlotOf(gradient.first)]; });  // given up since
  for (const auto& [id, gradient] : logged.gradients) {
    RETURN_IF_ERROR(CheckBlock(id));
    const uint64_t expected = GradientBytes(gradient.dtype, ShapeOf(spec_, id.level));
    if (gradient.bytes.size() != expected)
      return DataLoss("step log: the gradient of block {} in step {} has {} bytes, must have {}", ToString(id), logged.step,
                      gradient.bytes.size(), expected);
  }
  RETURN_IF_ERROR(UpdateBlocks(logged.gradients, logged.run, logged.step, logged.parameters));
  absl::MutexLock lock(&run_mu_);
  head_step_ = logged.step;
  run_.run_id = logged.run.run_id;
  run_.epoch = logged.run.epoch;
  uint64_t& epoch = run_epochs_[run_.run_id];
  epoch = std::max(epoch, run_.epoch);
  return absl::OkStatus();
}

absl::Status Shard::GiveUpStepsSince(const std::optional<Cut>& cut, const SlotMap& map) {
  const SlotSet slots = map.SlotsOf(options_.server_id);
  Head head;
  if (cut.has_value()) {
    ASSIGN_OR_RETURN(head, LoadCut(*cut, map));
  }
  ASSIGN_OR_RETURN(BlockTable::LiveStores stores, OpenHeadStores(cut, head.foreign));
  RETURN_IF_ERROR(LogRestore(cut, slots));
  ownership_.Restrict(slots);
  InstallHead(std::move(head), std::move(stores));
  return absl::OkStatus();
}

void Shard::DropSlots(const SlotSet& slots) {
  std::vector<BlockId> ids;
  for (const BlockTable::Listed& block : table_->List())
    if (slots[SlotOf(block.id)]) ids.push_back(block.id);
  table_->Erase(ids);
}

absl::Status Shard::InstallImage(BlockImage image) {
  ASSIGN_OR_RETURN(BlockTable::Update update, table_->BeginUpdate(image.id, image.state->bytes(), /*needs_payload=*/false));
  update.state = std::const_pointer_cast<TrainState>(std::exchange(image.state, nullptr));
  table_->FinishUpdate(std::move(update), image.version, image.crc32c, std::move(image.payload));
  return absl::OkStatus();
}

// With those of `epochs`; an error says that they are kept in memory only.
absl::Status Shard::KeepFences(RunEpochs epochs) {
  {
    absl::MutexLock lock(&run_mu_);
    for (const auto& [run_id, epoch] : run_epochs_) epochs[run_id] = std::max(epochs[run_id], epoch);
  }
  const absl::Status written = WriteRuns(epochs);  // only train_mu_ is held over the write: nobody else changes the runs meanwhile
  absl::MutexLock lock(&run_mu_);
  run_epochs_ = std::move(epochs);
  return written;
}

absl::Status Shard::TakeLogged(const SlotsTaken& taken, const std::vector<LoggedImage>& images, const SlotSet& mine) {
  DropSlots(taken.slots);
  const SlotSet slots = taken.slots & mine;
  for (const LoggedImage& image : images) {
    if (!slots[SlotOf(image.id)]) continue;
    RETURN_IF_ERROR(CheckInSpec(image.id));
    absl::StatusOr<BlockImage> block = DecodeImage(spec_, image.id, image.weights, image.state, buffers_);
    if (!block.ok()) return Annotate(block.status(), "step log");
    RETURN_IF_ERROR(InstallImage(*std::move(block)));
  }
  slots_since_ = taken.marks.step;
  if (!taken.joins) return absl::OkStatus();
  RETURN_IF_ERROR(KeepFences(taken.run_epochs));
  absl::MutexLock lock(&run_mu_);
  head_step_ = taken.marks.step;
  run_.run_id = taken.marks.run_id;
  run_.epoch = taken.marks.run_epoch;
  return absl::OkStatus();
}

absl::Status Shard::Rewind(uint64_t step) {
  absl::MutexLock cut_lock(&cut_mu_);
  RETURN_IF_ERROR(AwaitCutsThawed());
  absl::MutexLock train(&train_mu_);
  if (options_.durability != Durability::kStep)
    return FailedPrecondition("server \"{}\" has durability class checkpoint, it can only go back to checkpoints; --durability step keeps steps",
                              options_.server_id);
  const std::optional<Cut> cut = checkpoints_->LastCommitted();
  const uint64_t first = std::max(cut.has_value() ? cut->marks.step : 0, slots_since_);
  {
    absl::MutexLock lock(&run_mu_);
    if (stopping_) return Unavailable("server \"{}\" is shutting down", options_.server_id);
    if (step == head_step_ && torn_step_ == 0) return absl::OkStatus();
    if (step < first || step > head_step_)
      return OutOfRange("server \"{}\" cannot go to step {}: its {} at step {}, its head at step {}", options_.server_id, step,
                        first == slots_since_ ? "newest slots came" : "last committed checkpoint is", first, head_step_);
  }
  RETURN_IF_ERROR(LoadHead(cut, *ownership_.map()));
  RETURN_IF_ERROR(ReplayLog(cut, step).status());
  absl::MutexLock lock(&run_mu_);
  if (head_step_ == step) return absl::OkStatus();
  return DataLoss("the step log of server \"{}\" ends at step {}, before step {}", options_.server_id, head_step_, step);
}

}  // namespace membank
