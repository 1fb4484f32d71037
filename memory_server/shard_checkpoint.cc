// Checkpoints and versions of a shard: what of its blocks goes to disk, and back. See shard.h; checkpoint.h has directories and manifests.
#include <algorithm>
#include <deque>
#include <utility>

#include "common/bank/block_layout.h"
#include "common/base/bytes.h"
#include "common/base/fail_point.h"
#include "common/base/random_id.h"
#include "common/base/status_macros.h"
#include "memory_server/block_record.h"
#include "memory_server/quantise.h"
#include "memory_server/shard.h"
#include "memory_server/shard_state.h"

namespace membank {
namespace {

}  // namespace

// Null when there is none of this cut.
std::unique_ptr<Shard::Snapshot> Shard::ClaimSnapshot(const std::string& id, uint64_t step) {
  absl::MutexLock lock(&snapshot_mu_);
  if (snapshot_ == nullptr || snapshot_->id != id || snapshot_->marks.step != step) return nullptr;
  return std::move(snapshot_);
}

void Shard::SetSnapshot(std::unique_ptr<Snapshot> snapshot) {
  absl::MutexLock lock(&snapshot_mu_);
  snapshot_.swap(snapshot);
}

bool Shard::HasSnapshot() {
  absl::MutexLock lock(&snapshot_mu_);
  return snapshot_ != nullptr;
}

// What every checkpoint operation does first: slots that are switching must find the same cuts on both servers.
absl::Status Shard::AwaitCutsThawed() {
  constexpr absl::Duration kLook = absl::Milliseconds(100);  // whether the server is shutting down
  const auto thawed = [this]() ABSL_SHARED_LOCKS_REQUIRED(cut_mu_) { return cuts_frozen_until_ <= absl::Now(); };
  while (!thawed()) {
    cut_mu_.AwaitWithDeadline(absl::Condition(&thawed), std::min(cuts_frozen_until_, absl::Now() + kLook));
    absl::MutexLock lock(&run_mu_);
    if (stopping_) return Unavailable("server \"{}\" is shutting down", options_.server_id);
  }
  return absl::OkStatus();
}

// Null afterwards when the cut is there already.
absl::Status Shard::TakeSnapshot(const std::string& id, uint64_t step) {
  RETURN_IF_ERROR(CheckNoReplica());
  SetSnapshot(nullptr);
  CutMarks marks;
  {
    absl::MutexLock lock(&run_mu_);
    if (stopping_) return Unavailable("server \"{}\" is shutting down", options_.server_id);
    if (head_step_ != step)
      return FailedPrecondition("checkpoint {} wants step {}, the head of server \"{}\" is at step {}", id, step, options_.server_id, head_step_);
    const auto next = pending_.find(head_step_ + 1);
    if (torn_step_ != 0 || (next != pending_.end() && next->second->applying.has_value()))
      return FailedPrecondition("checkpoint {}: the head of server \"{}\" holds half of step {}; finish the step or restore a checkpoint", id,
                                options_.server_id, head_step_ + 1);
    marks = {head_step_, run_.run_id, run_.epoch};
  }
  const absl::StatusOr<Cut> existing = checkpoints_->Find(id);
  if (absl::IsInvalidArgument(existing.status())) return existing.status();
  if (existing.ok()) {
    if (existing->marks == marks) return absl::OkStatus();  // within an epoch a step has one outcome only
    if (existing->committed > 0 && checkpoints_->LastCommitted()->id == id)
      return AlreadyExists("checkpoint {} is the last committed one, at step {} of run {} epoch {}; choose another id", id, existing->marks.step,
                           existing->marks.run_id, existing->marks.run_epoch);
    RETURN_IF_ERROR(checkpoints_->Delete(id));  // of a history that was given up
  }
  RETURN_IF_ERROR(LogCut(id, marks));
  absl::StatusOr<std::unique_ptr<BlockTable::Cut>> blocks = table_->BeginCut();
  if (!blocks.ok()) return Annotate(blocks.status(), fmt::format("checkpoint {}", id));
  RETURN_IF_ERROR(CheckFreeSpace((*blocks)->dirty_bytes()));
  SetSnapshot(std::make_unique<Snapshot>(Snapshot{id, marks, {ownership_.slots(), ownership_.epoch()}, *std::move(blocks)}));
  return absl::OkStatus();
}

absl::Status Shard::SnapshotCheckpoint(const std::string& id, uint64_t step) {
  absl::MutexLock cut_lock(&cut_mu_);
  RETURN_IF_ERROR(AwaitCutsThawed());
  absl::MutexLock train(&train_mu_);
  if (std::unique_ptr<Snapshot> again = ClaimSnapshot(id, step)) {
    SetSnapshot(std::move(again));
    return absl::OkStatus();
  }
  return TakeSnapshot(id, step);
}

absl::Status Shard::PrepareCheckpoint(const std::string& id, uint64_t step) {
  absl::MutexLock cut_lock(&cut_mu_);
  RETURN_IF_ERROR(AwaitCutsThawed());
  // A snapshot that is there is taken without train_mu_: the step that holds it may be waiting for the room of this snapshot's images.
  std::unique_ptr<Snapshot> snapshot = ClaimSnapshot(id, step);
  if (snapshot == nullptr) {
    absl::MutexLock train(&train_mu_);
    if (const absl::StatusOr<Cut> existing = checkpoints_->Find(id); existing.ok()) {
      absl::MutexLock lock(&run_mu_);
      if (existing->marks == CutMarks{step, run_.run_id, run_.epoch}) return absl::OkStatus();  // asked again, the head may be ahead by now
    }
    RETURN_IF_ERROR(TakeSnapshot(id, step));
    snapshot = ClaimSnapshot(id, step);
  }
  if (snapshot == nullptr) return absl::OkStatus();
  MEMBANK_FAIL_POINT("checkpoint.write.begun");
  const absl::Status status = snapshot->blocks->Write([&](const HeadStores& stores) -> absl::Status {
    MEMBANK_FAIL_POINT("checkpoint.write.done");
    RETURN_IF_ERROR(stores.state->Put(kMarksKey, AsBytes(EncodeMarks(snapshot->marks))));
    return checkpoints_->Prepare(id, snapshot->marks, snapshot->blocks->digest(), snapshot->held, stores);
  });
  return status.ok() ? status : Annotate(status, fmt::format("checkpoint {}", id));
}

absl::Status Shard::CommitCheckpoint(const std::string& id, uint32_t keep) {
  absl::MutexLock cut_lock(&cut_mu_);
  RETURN_IF_ERROR(AwaitCutsThawed());
  ASSIGN_OR_RETURN(const Cut cut, checkpoints_->Find(id));
  if (cut.committed > 0) return absl::OkStatus();
  RETURN_IF_ERROR(checkpoints_->Commit(id, keep));
  absl::MutexLock train(&train_mu_);
  return LogCommit(cut);
}

absl::Status Shard::AbortCheckpoint(const std::string& id) {
  absl::MutexLock cut_lock(&cut_mu_);
  RETURN_IF_ERROR(AwaitCutsThawed());
  const absl::StatusOr<Cut> cut = checkpoints_->Find(id);
  if (absl::IsNotFound(cut.status())) return absl::OkStatus();
  RETURN_IF_ERROR(cut.status());
  if (cut->committed > 0) return FailedPrecondition("checkpoint {} is committed, it can be deleted but not aborted", id);
  MEMBANK_FAIL_POINT("checkpoint.abort.begun");
  return checkpoints_->Delete(id);
}

absl::Status Shard::DeleteCheckpoint(const std::string& id) {
  absl::MutexLock cut_lock(&cut_mu_);
  RETURN_IF_ERROR(AwaitCutsThawed());
  const absl::StatusOr<Cut> cut = checkpoints_->Find(id);
  if (absl::IsNotFound(cut.status())) return absl::OkStatus();
  RETURN_IF_ERROR(cut.status());
  if (cut->committed > 0 && checkpoints_->LastCommitted()->id == id)
    return FailedPrecondition("checkpoint {} is the last committed one, which a restart goes back to; commit another one first", id);
  return checkpoints_->Delete(id);
}

absl::Status Shard::RestoreCheckpoint(const std::string& id) {
  absl::MutexLock cut_lock(&cut_mu_);
  RETURN_IF_ERROR(AwaitCutsThawed());
  ASSIGN_OR_RETURN(const Cut cut, checkpoints_->Find(id));
  SetSnapshot(nullptr);  // before train_mu_: the step that holds it may be waiting for the room of images that nobody will write
  absl::MutexLock train(&train_mu_);
  ASSIGN_OR_RETURN(Head head, LoadCut(cut, *ownership_.map()));
  MEMBANK_FAIL_POINT("restore.loaded");
  ASSIGN_OR_RETURN(BlockTable::LiveStores stores, OpenHeadStores(cut, head.foreign));
  const std::optional<Cut> last = checkpoints_->LastCommitted();
  if (!last.has_value() || last->id != id) RETURN_IF_ERROR(checkpoints_->Commit(id));
  MEMBANK_FAIL_POINT("restore.opened");
  RETURN_IF_ERROR(LogRestore(cut, ownership_.slots()));
  InstallHead(std::move(head), std::move(stores));
  return absl::OkStatus();
}

absl::Status Shard::CheckHolds(const Cut& cut, const SlotMap& map) const {
  const SlotSet missing = map.SlotsOf(options_.server_id) & ~cut.held.slots;
  if (missing.none()) return absl::OkStatus();
  return FailedPrecondition("checkpoint {} holds the slots that server \"{}\" had by slot map epoch {}, by epoch {} it also has slots {}; take a "
                            "checkpoint made since, or bring one in from a copy (membank checkpoint import)",
                            cut.id, options_.server_id, cut.held.epoch, map.epoch(), FormatSlots(missing));
}

absl::StatusOr<BlockTable::LiveStores> Shard::OpenHeadStores(const std::optional<Cut>& cut, const std::vector<BlockId>& foreign) {
  ASSIGN_OR_RETURN(BlockTable::LiveStores stores, checkpoints_->OpenHead(cut));
  std::vector<BlockStore::Write> erased;
  for (BlockId id : foreign) erased.push_back({BlockKey(id), {}, true});
  RETURN_IF_ERROR(stores->weights->Apply(erased));
  RETURN_IF_ERROR(stores->state->Apply(erased));
  return stores;
}

// Checks every byte of the cut. With a memory budget the blocks stay on disk until they are needed.
absl::StatusOr<Shard::Head> Shard::LoadCut(const Cut& cut, const SlotMap& map) const {
  RETURN_IF_ERROR(CheckHolds(cut, map));
  const SlotSet owned = map.SlotsOf(options_.server_id);
  const bool keep = options_.memory_budget_bytes == 0;
  const absl::StatusOr<HeadStores> opened = checkpoints_->OpenCut(cut);
  if (!opened.ok()) return Annotate(opened.status(), fmt::format("checkpoint {} in {}", cut.id, cut.directory));
  const HeadStores& stores = *opened;
  Head head;
  head.marks = cut.marks;
  CutDigest digest;
  const absl::Status weights = stores.weights->Scan(kBlockKeyPrefix, [&](std::string_view key, absl::Span<const uint8_t> value) {
    ASSIGN_OR_RETURN(const BlockId id, ParseBlockKey(key));
    RETURN_IF_ERROR(CheckInSpec(id));
    const absl::StatusOr<WeightsRecord> record = DecodeWeights(value, spec_.BlockBytes(id.level));
    if (!record.ok()) return Annotate(record.status(), fmt::format("payload of block {}", ToString(id)));
    digest.Add(id, record->version, record->crc32c);
    if (!owned[SlotOf(id)]) {  // moved away since
      head.foreign.push_back(id);
      return absl::OkStatus();
    }
    BlockTable::Loaded& block = head.blocks[id];
    block = {record->version, record->crc32c, record->payload.size()};
    if (keep) block.payload = CopyPayload(record->payload, buffers_.get());
    return absl::OkStatus();
  });
  if (!weights.ok()) return Annotate(weights, fmt::format("checkpoint {} in {}/weights", cut.id, cut.directory));
  if (digest != cut.digest)
    return DataLoss("checkpoint {} in {}/weights holds {} blocks with digest {:08x}, its manifest says {} with {:08x}", cut.id, cut.directory,
                    digest.blocks, digest.crc32c, cut.digest.blocks, cut.digest.crc32c);

  uint64_t states = 0;
  const absl::Status state = stores.state->Scan(kBlockKeyPrefix, [&](std::string_view key, absl::Span<const uint8_t> value) {
    ASSIGN_OR_RETURN(const BlockId id, ParseBlockKey(key));
    if (!owned[SlotOf(id)]) return absl::OkStatus();
    const absl::StatusOr<StateRecord> record = DecodeState(value);
    if (!record.ok()) return Annotate(record.status(), fmt::format("state of block {}", ToString(id)));
    const auto block = head.blocks.find(id);
    RETURN_IF_ERROR(CheckState(spec_, id, block == head.blocks.end() ? 0 : block->second.version, *record));
    ++states;
    block->second.state_bytes = record->weights.size() + record->m.size() + record->v.size();
    if (keep) block->second.state = CopyState(*record, buffers_);
    return absl::OkStatus();
  });
  if (!state.ok()) return Annotate(state, fmt::format("checkpoint {} in {}/state", cut.id, cut.directory));
  if (states != head.blocks.size())
    return DataLoss("checkpoint {} in {}/state holds {} blocks, there are {} payloads", cut.id, cut.directory, states, head.blocks.size());
  std::string marks;
  RETURN_IF_ERROR(stores.state->Get(kMarksKey, [&](absl::Span<const uint8_t> value) { marks.assign(value.begin(), value.end()); }));
  if (marks != EncodeMarks(cut.marks))
    return DataLoss("checkpoint {} in {}/state has the marks {}, its manifest says {}", cut.id, cut.directory, marks, EncodeMarks(cut.marks));
  return head;
}

absl::Status Shard::LoadHead(const std::optional<Cut>& cut, const SlotMap& map) {
  Head head;
  if (cut.has_value()) {
    ASSIGN_OR_RETURN(head, LoadCut(*cut, map));
  }
  ASSIGN_OR_RETURN(BlockTable::LiveStores stores, OpenHeadStores(cut, head.foreign));
  InstallHead(std::move(head), std::move(stores));
  return absl::OkStatus();
}

void Shard::InstallHead(Head head, BlockTable::LiveStores stores) {
  SetSnapshot(nullptr);
  table_->Install(std::move(head.blocks), std::move(stores));
  absl::MutexLock lock(&run_mu_);
  EndRun();
  run_ = RunSettings();
  run_.run_id = head.marks.run_id;
  run_.epoch = head.marks.run_epoch;
  if (!run_.run_id.empty()) run_epochs_[run_.run_id] = std::max(run_epochs_[run_.run_id], run_.epoch);
  head_step_ = head.marks.step;
  torn_step_ = 0;
}

void Shard::EndRun() {
  run_active_ = false;
  head_generation_ = RandomId();
  next_step_.clear();
  DropPending();
}

std::vector<CheckpointInfo> Shard::ListCheckpoints() const {
  std::vector<CheckpointInfo> infos;
  for (const Cut& cut : checkpoints_->List()) infos.push_back({cut.id, cut.marks.step, cut.committed > 0});
  return infos;
}

absl::Status Shard::Publish(const std::string& checkpoint_id, const std::string& version, PayloadType payload) {
  absl::MutexLock cut_lock(&cut_mu_);
  RETURN_IF_ERROR(AwaitCutsThawed());
  RETURN_IF_ERROR(CheckFreeSpace(0));
  ASSIGN_OR_RETURN(const Cut cut, checkpoints_->Find(checkpoint_id));
  RETURN_IF_ERROR(CheckHolds(cut, *ownership_.map()));
  if (payload == PayloadType::kI8Rows && !Int8IsSmaller(spec_))
    return InvalidArgument("version {}: int8 with a scale per row of {} elements is not smaller than {}; publish the bank as it is", version, ShapeOf(spec_, 1).row,
                           DTypeName(spec_.dtype));
  const auto before_write = [this](uint64_t bytes) {
    {
      absl::MutexLock lock(&run_mu_);
      if (stopping_) return Unavailable("server \"{}\" is shutting down", options_.server_id);
    }
    return CheckFreeSpace(bytes);
  };
  return checkpoints_->Publish(checkpoint_id, version, payload, [&](const Cut& whole, BlockStore* weights, BlockStore* empty) {
    return QuantiseStore(spec_, weights, whole.digest, empty, before_write);
  });
}

std::vector<BankVersion> Shard::ListVersions() const { return checkpoints_->ListVersions(); }

}  // namespace membank
