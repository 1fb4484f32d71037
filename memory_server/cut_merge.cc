#include "memory_server/cut_merge.h"

#include <fcntl.h>
#include <stdio.h>

#include <filesystem>

#include "common/base/bytes.h"
#include "common/base/file.h"
#include "common/base/status_macros.h"
#include "memory_server/block_record.h"
#include "memory_server/checked_json.h"
#include "nlohmann/json.hpp"

namespace membank {
namespace {

namespace fs = std::filesystem;

constexpr char kWeights[] = "/weights", kState[] = "/state";

}  // namespace

absl::StatusOr<std::unique_ptr<CutMerge>> CutMerge::Begin(CheckpointStore* store, const MergeSource& source, const SlotSet& slots,
                                                          uint64_t epoch, const std::string& base) {
  std::unique_ptr<CutMerge> merge(new CutMerge(store, source));
  const bool version = !source.version.empty();
  const std::string& name = version ? source.version : source.checkpoint_id;
  const std::string& parent = version ? store->versions_directory_ : store->checkpoints_;
  merge->directory_ = parent + "/" + name;
  merge->building_ = parent + "/.move-" + name;
  CutMarks marks;
  if (version) {
    const absl::StatusOr<CheckpointStore::Version> existing = store->FindVersion(name);
    merge->replaces_ = existing.ok();
    if (existing.ok()) marks = existing->marks, merge->held_ = existing->held;
    else if (!absl::IsNotFound(existing.status())) return existing.status();
    if (existing.ok() && existing->payload != source.payload)
      return FailedPrecondition("{} has payloads of another form than the old owner's; publish under another name", merge->directory_);
  } else {
    const absl::StatusOr<Cut> existing = store->Find(name);
    merge->replaces_ = existing.ok();
    if (existing.ok()) marks = existing->marks, merge->held_ = existing->held, merge->prepared_ = existing->prepared;
    else if (!absl::IsNotFound(existing.status())) return existing.status();
  }
  if (merge->replaces_ && marks != source.marks)
    return FailedPrecondition("{} is of step {} of run \"{}\" epoch {} here, the old owner's is of step {} of run \"{}\" epoch {}", merge->directory_,
                              marks.step, marks.run_id, marks.run_epoch, source.marks.step, source.marks.run_id, source.marks.run_epoch);
  if (fs::exists(merge->building_)) RETURN_IF_ERROR(store->Remove(merge->building_));
  if (merge->replaces_) {
    RETURN_IF_ERROR(CloneStore(merge->directory_ + kWeights, merge->building_ + kWeights));
    if (!version) RETURN_IF_ERROR(CloneStore(merge->directory_ + kState, merge->building_ + kState));
  } else if (!base.empty()) {
    ASSIGN_OR_RETURN(const CheckpointStore::Version begin, store->FindVersion(base));
    if (begin.payload != source.payload) return FailedPrecondition("versions {} and {} have payloads of different forms", base, name);
    RETURN_IF_ERROR(CloneStore(parent + "/" + base + kWeights, merge->building_ + kWeights));
  }
  ASSIGN_OR_RETURN(merge->weights_, store->open_store_(merge->building_ + kWeights, StoreAccess::kReadWrite));
  if (!version) {
    ASSIGN_OR_RETURN(merge->state_, store->open_store_(merge->building_ + kState, StoreAccess::kReadWrite));
    merge->marks_ = EncodeMarks(source.marks);
  }
  if ((merge->held_.slots & slots).any()) RETURN_IF_ERROR(merge->EraseStale(slots));
  merge->held_.slots |= slots;
  merge->held_.epoch = epoch;
  return merge;
}

CutMerge::~CutMerge() {
  weights_.reset();
  state_.reset();
  std::error_code ignored;
  if (!building_.empty()) fs::remove_all(building_, ignored);
}

// Slots that were here, went away and come back.
absl::Status CutMerge::EraseStale(const SlotSet& slots) {
  std::vector<BlockStore::Write> erased;
  RETURN_IF_ERROR(weights_->Scan(kBlockKeyPrefix, [&](std::string_view key, absl::Span<const uint8_t>) -> absl::Status {
    ASSIGN_OR_RETURN(const BlockId id, ParseBlockKey(key));
    if (slots[SlotOf(id)]) erased.push_back({std::string(key), {}, true});
    return absl::OkStatus();
  }));
  RETURN_IF_ERROR(weights_->Apply(erased));
  return state_ ? state_->Apply(erased) : absl::OkStatus();
}

absl::Status CutMerge::Add(BlockId id, absl::Span<const uint8_t> weights, absl::Span<const uint8_t> state) {
  if (weights.empty()) return weights_->Delete(BlockKey(id));
  RETURN_IF_ERROR(weights_->Put(BlockKey(id), weights));
  return state_ ? state_->Put(BlockKey(id), state) : absl::OkStatus();
}

absl::Status CutMerge::Finish() {
  RETURN_IF_ERROR(weights_->Flush());
  RETURN_IF_ERROR(weights_->Scan(kBlockKeyPrefix, [&](std::string_view key, absl::Span<const uint8_t> value) -> absl::Status {
    ASSIGN_OR_RETURN(const BlockId id, ParseBlockKey(key));
    ASSIGN_OR_RETURN(const WeightsRecord peeked, DecodeWeightsHeader(value));
    ASSIGN_OR_RETURN(const WeightsRecord record, DecodeWeights(value, peeked.payload.size()));  // the checksum holds
    digest_.Add(id, record.version, record.crc32c);
    return absl::OkStatus();
  }));
  weights_.reset();
  if (state_) {
    RETURN_IF_ERROR(state_->Put(kMarksKey, AsBytes(marks_)));
    RETURN_IF_ERROR(state_->Flush());
    state_.reset();
  }
  if (!replaces_) prepared_ = store_->NextSequence();
  nlohmann::json manifest = MarksToJson(source_.marks, digest_, held_, store_->spec_hash_);
  if (source_.version.empty()) {
    manifest["id"] = source_.checkpoint_id;
    manifest["sequence"] = prepared_;
  } else {
    AddVersionFacts(source_.checkpoint_id, source_.payload, &manifest);
  }
  RETURN_IF_ERROR(WriteCheckedJson(building_ + "/manifest.json", manifest));
  return SyncDirectory(building_);
}

absl::Status CheckpointStore::Install(CutMerge* merge) {
  const MergeSource& source = merge->source_;
  const bool version = !source.version.empty();
  Cut cut{source.checkpoint_id, merge->directory_, source.marks, merge->digest_, merge->prepared_, 0, merge->held_};
  if (version) {
    if (FindVersion(source.version).ok() != merge->replaces_) return Aborted("version {} changed while slots were moved into it", source.version);
  } else {
    const absl::StatusOr<Cut> existing = Find(source.checkpoint_id);
    const bool same = existing.ok() ? merge->replaces_ && existing->prepared == merge->prepared_ : !merge->replaces_;
    if (!same) return Aborted("checkpoint {} changed while slots were moved into it", source.checkpoint_id);
    if (existing.ok()) cut.committed = existing->committed;
    if (cut.committed > 0)
      RETURN_IF_ERROR(WriteCheckedJson(merge->building_ + "/committed.json", {{"sequence", cut.committed}}));
  }
  const unsigned flags = merge->replaces_ ? RENAME_EXCHANGE : RENAME_NOREPLACE;
  if (::renameat2(AT_FDCWD, merge->building_.c_str(), AT_FDCWD, merge->directory_.c_str(), flags) != 0)
    return absl::ErrnoToStatus(errno, fmt::format("rename {} to {}", merge->building_, merge->directory_));
  RETURN_IF_ERROR(SyncDirectory(fs::path(merge->directory_).parent_path()));
  if (!version) {
    absl::MutexLock lock(&mu_);
    cuts_[source.checkpoint_id] = std::move(cut);
    return absl::OkStatus();
  }
  Version installed{source.version, source.checkpoint_id, source.marks, merge->digest_, merge->held_, source.payload};
  ASSIGN_OR_RETURN(installed.weights, open_store_(merge->directory_ + kWeights, StoreAccess::kReadOnly));
  absl::MutexLock lock(&mu_);
  versions_[source.version] = std::move(installed);
  return absl::OkStatus();
}

}  // namespace membank
