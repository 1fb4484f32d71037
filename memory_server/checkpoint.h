// Checkpoints and published versions of one shard on disk; knows stores and manifests, of blocks only keys and checksums.
//   <data>/checkpoints/<id>/   weights/ state/   two stores' cuts (hard links)
//                              manifest.json     what the cut holds; written last, then the directory is renamed from .new-<id>
//                              committed.json    {"sequence": n}: the highest n is what a restart goes back to
//   <data>/versions/<name>/    weights/ manifest.json       "payload": the form of its payloads, when it is not the bank's
//   Every .json carries its checksum (checked_json.h).
//   <data>/head/<n>/           weights/ state/   the live stores below the shard: scratch, made from a cut at every start and restore
// Nothing in them changes, except by Purge. Whatever is removed is first renamed to .trash-*; Open finishes what was interrupted, so that every name without a dot is whole.
//
// Calls that change something are serialised by the caller (Shard::train_mu_); the const ones may run beside them.
// Errors: NOT_FOUND lists what there is; DATA_LOSS names a damaged manifest; INVALID_ARGUMENT a bad id.
#pragma once

#include <atomic>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "common/bank/block.h"
#include "common/bank/payload.h"
#include "common/bank/slot_map.h"
#include "common/bank/training.h"
#include "memory_server/block_store.h"
#include "nlohmann/json_fwd.hpp"

namespace membank {

// The deduplication marks that commit with the weights they describe.
struct CutMarks {
  uint64_t step = 0;
  std::string run_id;
  uint64_t run_epoch = 0;

  bool operator==(const CutMarks&) const = default;
};

std::string EncodeMarks(const CutMarks& marks);  // as they lie in a state store

// A cut's contents in two numbers: a missing, doubled or older block changes them.
struct CutDigest {
  uint64_t blocks = 0;
  uint32_t crc32c = 0;  // over (level, cluster, version, payload crc) of all blocks, ascending

  void Add(BlockId id, uint64_t version, uint32_t payload_crc32c);  // ascending

  bool operator==(const CutDigest&) const = default;
};

// Which slots a cut or version holds, all their blocks: those its server owned when it was made, and those moved into it since.
struct HeldSlots {
  SlotSet slots;
  uint64_t epoch = 0;  // of the slot map that said so last

  bool operator==(const HeldSlots&) const = default;
};

struct Cut {
  std::string id;
  std::string directory;
  CutMarks marks;
  CutDigest digest;
  uint64_t prepared = 0;   // order of preparation
  uint64_t committed = 0;  // order of commits; 0 = prepared only
  HeldSlots held;
};

struct KeyRange {
  std::string first, last;  // up to, not including, the last
};

struct HeadStores {
  std::unique_ptr<BlockStore> weights, state;
};

nlohmann::json MarksToJson(const CutMarks& marks, const CutDigest& digest, const HeldSlots& held, const std::string& spec_hash);  // a manifest's
// What a version's manifest says beside its marks.
void AddVersionFacts(const std::string& checkpoint_id, PayloadType payload, nlohmann::json* manifest);

// A durable image of a store that nobody writes: table files are never modified, so they are hard-linked; the rest is small and copied.
absl::Status CloneStore(const std::string& from, const std::string& to);

class CutMerge;  // cut_merge.h: a cut or version on its way to hold more slots

class CheckpointStore {
 public:
  struct Version {
    std::string name;
    std::string checkpoint_id;
    CutMarks marks;
    CutDigest digest;
    HeldSlots held;
    PayloadType payload = PayloadType::kBank;
    absl::Status damage;  // found when it was opened; reads of this version fail with it, everything else goes on
    std::shared_ptr<BlockStore> weights;
  };

  static absl::StatusOr<std::unique_ptr<CheckpointStore>> Open(const std::string& data_directory, const std::string& spec_hash,
                                                               OpenBlockStore open_store, uint32_t keep_checkpoints);

  // New live stores, holding the contents of `cut`, or nothing. Their directory goes when the last holder lets go. Any thread.
  absl::StatusOr<std::shared_ptr<HeadStores>> OpenHead(const std::optional<Cut>& cut) const;
  absl::StatusOr<HeadStores> OpenCut(const Cut& cut) const;  // read-only
  // Empty stores to be filled and then given to Prepare; gone with the next start or RemoveScratch.
  absl::StatusOr<HeadStores> OpenScratch(const std::string& id);
  absl::Status RemoveScratch(const std::string& id);

  // Cuts the (written, not yet flushed) head stores.
  absl::Status Prepare(const std::string& id, const CutMarks& marks, const CutDigest& digest, const HeldSlots& held, const HeadStores& head);
  // Gives the cut the highest sequence, then removes prepared cuts older than it and committed ones beyond `keep_checkpoints`.
  // keep: instead of keep_checkpoints, when above 0.
  absl::Status Commit(const std::string& id, uint32_t keep = 0);
  absl::Status Delete(const std::string& id);  // prepared or committed
  // `convert`: fills the empty store with the cut's blocks as `payload` and returns their digest; null for kBank, whose blocks share the cut's files.
  using Convert = std::function<absl::StatusOr<CutDigest>(const Cut& cut, BlockStore* weights, BlockStore* empty)>;
  absl::Status Publish(const std::string& id, const std::string& version, PayloadType payload = PayloadType::kBank,
                       const Convert& convert = nullptr);
  // Erases the block keys of `ranges` from every cut and version, and all leftovers: afterwards no file here holds a byte of them. How many
  // cuts and versions there are. Any interruption is mended by the same call; until then restarts and restores may find damage.
  absl::StatusOr<uint64_t> Purge(const std::vector<KeyRange>& ranges) ABSL_LOCKS_EXCLUDED(mu_);
  // Changes when a purge begins and ends: what seemed damaged while it changed is to be read again, with stores opened again.
  uint64_t purges() const { return purges_; }
  // Replaces the cut or version by the merge's, atomically; NOT_FOUND or ABORTED when the one it began with is not there any more.
  absl::Status Install(CutMerge* merge);

  absl::StatusOr<Cut> Find(const std::string& id) const ABSL_LOCKS_EXCLUDED(mu_);
  std::optional<Cut> LastCommitted() const ABSL_LOCKS_EXCLUDED(mu_);
  std::vector<Cut> List() const ABSL_LOCKS_EXCLUDED(mu_);  // oldest first
  absl::StatusOr<Version> FindVersion(const std::string& name) const ABSL_LOCKS_EXCLUDED(mu_);
  std::vector<BankVersion> ListVersions() const ABSL_LOCKS_EXCLUDED(mu_);  // without damaged ones

 private:
  friend class CutMerge;
  CheckpointStore(const std::string& data_directory, const std::string& spec_hash, OpenBlockStore open_store, uint32_t keep_checkpoints);
  absl::Status LoadCuts() ABSL_LOCKS_EXCLUDED(mu_);
  absl::Status LoadVersions() ABSL_LOCKS_EXCLUDED(mu_);
  absl::Status LoadVersion(const std::string& directory, Version* version) const;
  absl::StatusOr<CutDigest> ConvertWeights(const Cut& cut, const std::string& building, const Convert& convert) const;
  absl::Status Remove(const std::string& directory);
  absl::StatusOr<CutDigest> PurgeDirectory(const std::string& directory, const CutDigest& recorded, const std::vector<KeyRange>& ranges);
  absl::Status PurgeVersion(const Version& version, const std::vector<KeyRange>& ranges) ABSL_LOCKS_EXCLUDED(mu_);
  void CollectGarbage(const Cut& newest, uint32_t keep) ABSL_LOCKS_EXCLUDED(mu_);
  uint64_t NextSequence() const ABSL_LOCKS_EXCLUDED(mu_);

  const std::string checkpoints_, versions_directory_, head_;
  mutable std::atomic<uint64_t> next_head_{0};
  std::atomic<uint64_t> purges_{0};
  const std::string spec_hash_;
  const OpenBlockStore open_store_;
  const uint32_t keep_checkpoints_;

  mutable absl::Mutex mu_;  // the tables only; never held over file operations
  std::map<std::string, Cut> cuts_ ABSL_GUARDED_BY(mu_);
  std::map<std::string, Version> versions_ ABSL_GUARDED_BY(mu_);
};

}  // namespace membank
