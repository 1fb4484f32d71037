// Checkpoints and versions of a shard: what of its blocks goes to disk, and back. See shard.h; checkpoint.h has directories and manifests.
#include <algorithm>
#include <deque>
#include <utility>

#include "common/base/crc32c.h"
#include "common/base/status_macros.h"
#include "memory_server/block_record.h"
#include "memory_server/shard.h"
#include "memory_server/shard_state.h"
#include "nlohmann/json.hpp"

namespace membank {
namespace {

constexpr uint64_t kBatchBytes = 64 << 20;  // of one atomic write; the cut, not the batch, is what makes all of them one

std::string EncodeMarks(const CutMarks& marks) {
  return nlohmann::json{{"step", marks.step}, {"run_id", marks.run_id}, {"run_epoch", marks.run_epoch}}.dump();
}

absl::Span<const uint8_t> Bytes(const std::string& text) { return {reinterpret_cast<const uint8_t*>(text.data()), text.size()}; }

Buffer Copy(absl::Span<const uint8_t> bytes) {
  if (bytes.empty()) return Buffer();
  Buffer buffer(bytes.size());
  std::copy(bytes.begin(), bytes.end(), buffer.data());
  return buffer;
}

// Collects writes that borrow their payloads and hands them to the store in bounded batches.
class BatchWriter {
 public:
  explicit BatchWriter(BlockStore* store) : store_(store) {}
  absl::Status Add(std::string key, std::string header, std::vector<absl::Span<const uint8_t>> arrays) {
    headers_.push_back(std::move(header));
    BlockStore::Write write{std::move(key), {Bytes(headers_.back())}};
    for (absl::Span<const uint8_t> array : arrays) bytes_ += array.size(), write.parts.push_back(array);
    batch_.push_back(std::move(write));
    return bytes_ >= kBatchBytes ? Flush() : absl::OkStatus();
  }
  absl::Status Flush() {
    RETURN_IF_ERROR(store_->Apply(batch_));
    batch_.clear();
    headers_.clear();
    bytes_ = 0;
    return absl::OkStatus();
  }

 private:
  BlockStore* const store_;
  std::deque<std::string> headers_;  // stable addresses
  std::vector<BlockStore::Write> batch_;
  uint64_t bytes_ = 0;
};

// Folds blocks, in ascending order, into a cut's digest.
void AddToDigest(BlockId id, uint64_t version, uint32_t crc, CutDigest* digest) {
  const uint32_t words[] = {id.level, id.cluster, static_cast<uint32_t>(version), static_cast<uint32_t>(version >> 32), crc};
  digest->crc32c = ExtendCrc32c(digest->crc32c, words, sizeof(words));
  ++digest->blocks;
}

}  // namespace

absl::Status Shard::PrepareCheckpoint(const std::string& id, uint64_t step) {
  absl::MutexLock train(&train_mu_);
  CutMarks marks;
  {
    absl::MutexLock lock(&run_mu_);
    if (stopping_) return Unavailable("server \"{}\" is shutting down", options_.server_id);
    if (head_step_ != step)
      return FailedPrecondition("checkpoint {} wants step {}, the head of server \"{}\" is at step {}", id, step, options_.server_id, head_step_);
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
  if (!head_stores_.has_value()) {  // an earlier write failed: start the head stores afresh
    ASSIGN_OR_RETURN(head_stores_, checkpoints_->OpenHead(std::nullopt));
    for (auto& [block, state] : states_) state->written_version = 0;
  }
  const DirtyBlocks dirty = CollectDirtyBlocks();
  RETURN_IF_ERROR(CheckFreeSpace(dirty.bytes));
  absl::Status status = WriteDirtyBlocks(dirty, marks);
  if (status.ok()) status = checkpoints_->Prepare(id, marks, dirty.digest, *head_stores_);
  if (!status.ok()) {
    head_stores_.reset();  // an engine is not trusted after a failed write (promise P5)
    return Annotate(status, fmt::format("checkpoint {}", id));
  }
  for (const DirtyBlocks::Block& block : dirty.blocks) block.state->written_version = block.view.version;
  return absl::OkStatus();
}

Shard::DirtyBlocks Shard::CollectDirtyBlocks() const {
  std::vector<std::pair<BlockId, View>> blocks;
  {
    absl::ReaderMutexLock lock(&views_mu_);
    blocks.assign(views_.begin(), views_.end());
  }
  std::sort(blocks.begin(), blocks.end(), [](const auto& a, const auto& b) { return a.first < b.first; });
  DirtyBlocks dirty;
  for (auto& [id, view] : blocks) {
    AddToDigest(id, view.version, view.crc32c, &dirty.digest);
    TrainState* const state = states_.at(id).get();
    if (state->written_version == view.version) continue;
    dirty.bytes += view.payload->size() + state->bytes();
    dirty.blocks.push_back({id, std::move(view), state});
  }
  return dirty;
}

absl::Status Shard::WriteDirtyBlocks(const DirtyBlocks& dirty, const CutMarks& marks) {
  BatchWriter weights(head_stores_->weights.get()), states(head_stores_->state.get());
  for (const auto& [id, view, state] : dirty.blocks) {
    const WeightsRecord record{view.version, view.crc32c, view.payload->span()};
    RETURN_IF_ERROR(weights.Add(BlockKey(id), EncodeWeightsHeader(record), {record.payload}));
    const StateRecord beside{view.version, state->adam_steps, std::as_const(state->weights).span(), std::as_const(state->m).span(),
                             std::as_const(state->v).span()};
    RETURN_IF_ERROR(states.Add(BlockKey(id), EncodeStateHeader(beside), {beside.weights, beside.m, beside.v}));
  }
  RETURN_IF_ERROR(weights.Flush());
  RETURN_IF_ERROR(states.Add(std::string(kMarksKey), EncodeMarks(marks), {}));
  return states.Flush();
}

absl::Status Shard::CommitCheckpoint(const std::string& id) {
  absl::MutexLock train(&train_mu_);
  ASSIGN_OR_RETURN(const Cut cut, checkpoints_->Find(id));
  return cut.committed > 0 ? absl::OkStatus() : checkpoints_->Commit(id);
}

absl::Status Shard::AbortCheckpoint(const std::string& id) {
  absl::MutexLock train(&train_mu_);
  const absl::StatusOr<Cut> cut = checkpoints_->Find(id);
  if (absl::IsNotFound(cut.status())) return absl::OkStatus();
  RETURN_IF_ERROR(cut.status());
  if (cut->committed > 0) return FailedPrecondition("checkpoint {} is committed, it can be deleted but not aborted", id);
  return checkpoints_->Delete(id);
}

absl::Status Shard::DeleteCheckpoint(const std::string& id) {
  absl::MutexLock train(&train_mu_);
  const absl::StatusOr<Cut> cut = checkpoints_->Find(id);
  if (absl::IsNotFound(cut.status())) return absl::OkStatus();
  RETURN_IF_ERROR(cut.status());
  if (cut->committed > 0 && checkpoints_->LastCommitted()->id == id)
    return FailedPrecondition("checkpoint {} is the last committed one, which a restart goes back to; commit another one first", id);
  return checkpoints_->Delete(id);
}

absl::Status Shard::RestoreCheckpoint(const std::string& id) {
  absl::MutexLock train(&train_mu_);
  ASSIGN_OR_RETURN(const Cut cut, checkpoints_->Find(id));
  ASSIGN_OR_RETURN(Head head, LoadCut(cut));
  const std::optional<Cut> last = checkpoints_->LastCommitted();
  if (!last.has_value() || last->id != id) RETURN_IF_ERROR(checkpoints_->Commit(id));
  head_stores_.reset();
  absl::StatusOr<HeadStores> stores = checkpoints_->OpenHead(cut);
  if (stores.ok()) head_stores_ = *std::move(stores);  // else the next checkpoint writes everything afresh
  InstallHead(std::move(head));
  return absl::OkStatus();
}

absl::StatusOr<Shard::Head> Shard::LoadCut(const Cut& cut) const {
  const absl::StatusOr<HeadStores> opened = checkpoints_->OpenCut(cut);
  if (!opened.ok()) return Annotate(opened.status(), fmt::format("checkpoint {} in {}", cut.id, cut.directory));
  const HeadStores& stores = *opened;
  Head head;
  head.marks = cut.marks;
  CutDigest digest;
  const absl::Status weights = stores.weights->Scan(kBlockKeyPrefix, [&](std::string_view key, absl::Span<const uint8_t> value) {
    ASSIGN_OR_RETURN(const BlockId id, ParseBlockKey(key));
    RETURN_IF_ERROR(CheckBlock(id));
    const absl::StatusOr<WeightsRecord> record = DecodeWeights(value, spec_.BlockBytes(id.level));
    if (!record.ok()) return Annotate(record.status(), fmt::format("payload of block {}", ToString(id)));
    AddToDigest(id, record->version, record->crc32c, &digest);
    head.state_bytes += record->payload.size();
    head.views[id] = {record->version, record->crc32c, buffers_->Share(Copy(record->payload))};
    return absl::OkStatus();
  });
  if (!weights.ok()) return Annotate(weights, fmt::format("checkpoint {} in {}/weights", cut.id, cut.directory));
  if (digest != cut.digest)
    return DataLoss("checkpoint {} in {}/weights holds {} blocks with digest {:08x}, its manifest says {} with {:08x}", cut.id, cut.directory,
                    digest.blocks, digest.crc32c, cut.digest.blocks, cut.digest.crc32c);

  const absl::Status state = stores.state->Scan(kBlockKeyPrefix, [&](std::string_view key, absl::Span<const uint8_t> value) {
    ASSIGN_OR_RETURN(const BlockId id, ParseBlockKey(key));
    const absl::StatusOr<StateRecord> record = DecodeState(value);
    if (!record.ok()) return Annotate(record.status(), fmt::format("state of block {}", ToString(id)));
    const auto view = head.views.find(id);
    const uint64_t arrays = spec_.BlockElements(id.level) * sizeof(float);
    const bool fits = view != head.views.end() && view->second.version == record->version &&
                      record->weights.size() == (spec_.dtype == DType::kBF16 ? arrays : 0) &&
                      (record->m.empty() || record->m.size() == arrays);
    if (!fits) return DataLoss("state of block {} at step {} does not belong to its payload", ToString(id), record->version);
    auto loaded = std::make_unique<TrainState>();
    loaded->weights = Copy(record->weights);
    loaded->m = Copy(record->m);
    loaded->v = Copy(record->v);
    loaded->adam_steps = record->adam_steps;
    loaded->written_version = record->version;
    head.state_bytes += loaded->bytes();
    head.states[id] = std::move(loaded);
    return absl::OkStatus();
  });
  if (!state.ok()) return Annotate(state, fmt::format("checkpoint {} in {}/state", cut.id, cut.directory));
  if (head.states.size() != head.views.size())
    return DataLoss("checkpoint {} in {}/state holds {} blocks, there are {} payloads", cut.id, cut.directory, head.states.size(),
                    head.views.size());
  std::string marks;
  RETURN_IF_ERROR(stores.state->Get(kMarksKey, [&](absl::Span<const uint8_t> value) { marks.assign(value.begin(), value.end()); }));
  if (marks != EncodeMarks(cut.marks))
    return DataLoss("checkpoint {} in {}/state has the marks {}, its manifest says {}", cut.id, cut.directory, marks, EncodeMarks(cut.marks));
  return head;
}

void Shard::InstallHead(Head head) {
  states_ = std::move(head.states);
  absl::MutexLock lock(&run_mu_);
  run_active_ = false;
  run_ = RunSettings();
  run_.run_id = head.marks.run_id;
  run_.epoch = head.marks.run_epoch;
  if (!run_.run_id.empty()) run_epochs_[run_.run_id] = std::max(run_epochs_[run_.run_id], run_.epoch);
  head_step_ = head.marks.step;
  next_step_.clear();
  DropPending();
  absl::MutexLock views(&views_mu_);
  std::swap(views_, head.views);
  state_bytes_ = head.state_bytes;
}

std::vector<CheckpointInfo> Shard::ListCheckpoints() const {
  std::vector<CheckpointInfo> infos;
  for (const Cut& cut : checkpoints_->List()) infos.push_back({cut.id, cut.marks.step, cut.committed > 0});
  return infos;
}

absl::Status Shard::Publish(const std::string& checkpoint_id, const std::string& version) {
  absl::MutexLock train(&train_mu_);
  RETURN_IF_ERROR(CheckFreeSpace(0));
  return checkpoints_->Publish(checkpoint_id, version);
}

std::vector<std::string> Shard::ListVersions() const { return checkpoints_->ListVersions(); }

}  // namespace membank
