// A checkpoint cut or a published version that is being rebuilt so that it holds the blocks of further slots: what a server that takes slots
// over does with every cut of the old owner, so that a restart or a restore after the move finds one whole cut again. It is built beside the
// original below a name with a dot; CheckpointStore::Install swaps the two in one rename. One thread; several merges may be built at once.
#pragma once

#include <memory>
#include <optional>
#include <string>

#include "memory_server/checkpoint.h"

namespace membank {

// What the source of the blocks says about its cut or version.
struct MergeSource {
  std::string checkpoint_id;
  std::string version;        // empty: the cut itself, else the version of this name
  CutMarks marks;
  uint64_t committed = 0;     // order of commits; 0 = prepared only
  CutDigest digest;           // of the source's own copy
  PayloadType payload = PayloadType::kBank;  // of a version
};

class CutMerge {
 public:
  // FAILED_PRECONDITION when there is a cut or version of this name with other marks.
  // `base`: a version to begin with instead of nothing, when the one to be built is not there, with payloads of the same form; empty: none.
  static absl::StatusOr<std::unique_ptr<CutMerge>> Begin(CheckpointStore* store, const MergeSource& source, const SlotSet& slots, uint64_t epoch,
                                                         const std::string& base = "");
  ~CutMerge();
  CutMerge(const CutMerge&) = delete;
  CutMerge& operator=(const CutMerge&) = delete;

  // The store records of a block of one of the slots, as BlockStore has them (block_record.h); no state for versions; no weights: the block
  // goes away.
  absl::Status Add(BlockId id, absl::Span<const uint8_t> weights, absl::Span<const uint8_t> state);
  // Verifies every payload, writes the manifest and makes all of it durable.
  absl::Status Finish();
  const CutDigest& digest() const { return digest_; }  // once finished

 private:
  friend class CheckpointStore;
  CutMerge(CheckpointStore* store, const MergeSource& source) : store_(store), source_(source) {}
  absl::Status EraseStale(const SlotSet& slots);

  CheckpointStore* const store_;
  const MergeSource source_;
  std::string building_, directory_;   // directories
  bool replaces_ = false;              // there was one to begin with
  uint64_t prepared_ = 0;              // its order of preparation
  HeldSlots held_;
  CutDigest digest_;
  std::string marks_;                  // the state store's "marks" record
  std::unique_ptr<BlockStore> weights_, state_;
};

}  // namespace membank
