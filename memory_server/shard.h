// One server's part of a bank: the one stateful object of a memory server. It knows no gRPC; memory_service.cc maps calls onto it.
//
// A shard is created from a spec and a slot map without an initialisation pass: untouched blocks cost nothing and are generated when read
// (common/bank/block_init.h). Touched blocks live in a BlockTable (block_table.h): an immutable payload that is replaced as a whole by
// every step, beside fp32 optimizer state; in RAM, and on disk beyond the memory budget. On disk: <data>/bank.json (the spec), server.json,
// runs.json, purge.json (what is being purged), head/, checkpoints/<id>/, versions/<name>/, steps/.
// A crash goes back to the last committed checkpoint, or with Durability::kStep to the last acknowledged step (design/promises.md P1-P5;
// step_log.h; shard_step_log.cc has what the shard does with it).
//
// Any thread may call anything; the owner destroys it after the last call returned. Reads never wait for a step or a checkpoint.
// Lock order: transfer_mu_ -> cut_mu_ (long: one checkpoint operation) -> train_mu_ (one step, snapshot or restore at a time) -> run_mu_ (short: run, pushes, head) -> the table's (short:
// pointers to payloads). Waiting calls wait on run_mu_ with nothing else held.
//
// Errors common to all calls: INVALID_ARGUMENT for what can never succeed (names the value and what is allowed), FAILED_PRECONDITION for
// a slot of another server (payload kSlotMapEpochPayload carries this server's epoch as decimal text), ABORTED "fenced" for an older epoch
// of the run, RESOURCE_EXHAUSTED below the disk watermark or above the push budget, DATA_LOSS for damage, UNAVAILABLE after Shutdown.
#pragma once

#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "common/bank/bank_spec.h"
#include "common/bank/payload.h"
#include "common/bank/slot_map.h"
#include "common/bank/training.h"
#include "common/bank/tree_prefix.h"
#include "common/base/buffer.h"
#include "common/base/thread_pool.h"
#include "memory_server/access.h"
#include "memory_server/block_store.h"
#include "memory_server/block_table.h"
#include "memory_server/buffer_pool.h"
#include "memory_server/checkpoint.h"
#include "memory_server/checkpoint_stream.h"
#include "memory_server/directory_lock.h"
#include "memory_server/gradients.h"
#include "memory_server/payload_cache.h"
#include "memory_server/slot_ownership.h"
#include "memory_server/step_log.h"

namespace membank {

enum class Durability : uint8_t {
  kCheckpoint,  // a crash goes back to the last committed checkpoint
  kStep,        // every step is on disk before it is acknowledged
};


struct ShardOptions {
  std::string data_directory;
  std::string server_id;                            // one of the slot map's servers, or one that is to join them
  std::string replica_of;                           // not empty: serves the published versions of that server, and nothing else
  OpenBlockStore open_store;                        // empty: RocksDB
  uint64_t memory_budget_bytes = 0;                 // payloads and optimizer state of touched blocks in RAM; 0: all of them, no bound
  uint64_t generated_cache_bytes = 256ull << 20;    // payloads of untouched blocks kept after generation
  uint64_t version_cache_bytes = 1ull << 30;        // payloads of published versions kept in RAM
  uint64_t push_budget_bytes = 8ull << 30;          // gradients held for steps not applied yet, those still arriving included
  uint64_t min_free_bytes = 256ull << 20;           // of the data directory's file system; below it pushes and checkpoints are refused
  uint32_t keep_checkpoints = 2;                    // committed ones; older ones are removed at commit
  int optimizer_threads = 0;                        // 0: one per core
  AccessOptions access;                             // who may train and administer
  Durability durability = Durability::kCheckpoint;
};

struct BlockRead {
  uint64_t version = 0;      // last step applied to the block; 0 = untouched
  uint32_t crc32c = 0;       // of the payload, computed when it was written
  SharedBuffer payload;      // null when unchanged; borrowed slices stay valid as long as this pointer lives
  bool unchanged = false;
  bool blocked = false;      // set by the call: the receiver computes with zeros
  PayloadType type = PayloadType::kBank;
  bool elsewhere = false;    // not in RAM, and nothing above is set: read it from anywhere
};

enum class ReadFrom { kRam, kAnywhere };  // kRam: returns at once, `elsewhere` when the block must be read from disk or generated

enum class PushOutcome {
  kAccepted,
  kDuplicate,  // the same (run, epoch, rank, step) was taken before; nothing changed
  kStale,      // a step before this epoch's first one; dropped
};

struct ShardStatus {
  uint64_t head_step = 0;
  std::string run_id;               // last run, empty when never trained
  uint64_t run_epoch = 0;           // highest epoch seen of that run
  uint64_t touched_blocks = 0;
  uint64_t resident_bytes = 0;      // payloads, optimizer state and caches
  BlockTable::Stats table;          // of the touched blocks
  std::vector<BankVersion> versions;
  bool durable_steps = false;       // Durability::kStep
};

struct PurgeResult {
  uint64_t blocks = 0;  // of the live head that had been trained
  uint64_t cuts = 0;    // checkpoints and versions that were searched
};

class Shard;

// One rank's push of one step on its way in. Nothing of it counts before Finish accepts it; destroying it (the stream broke) discards
// it. One thread; must not outlive the shard.
class GradientPush {
 public:
  ~GradientPush();
  GradientPush(const GradientPush&) = delete;
  GradientPush& operator=(const GradientPush&) = delete;

  // What Finish would answer already now: kDuplicate or kStale pushes need not be received. AddBlock of such a push does nothing.
  PushOutcome outcome() const { return outcome_; }

  // Call before memory for a block is allocated: block in the spec, owned here, not pushed yet, a gradient's dtype, exact size, budget.
  absl::Status CheckBlock(BlockId id, DType dtype, uint64_t bytes);
  // Checks like CheckBlock and refuses NaN and Inf, naming the element. After an error the whole push is dead: Finish repeats it.
  // A gradient that does not bring its sum of squares gets it here.
  absl::Status AddBlock(BlockId id, Gradient gradient);
  // Makes the push count, as a whole.
  absl::StatusOr<PushOutcome> Finish();

 private:
  friend class Shard;
  GradientPush(Shard* shard, StepId step, uint32_t rank, std::vector<double> sums, uint64_t slot_map_epoch, PushOutcome outcome)
      : shard_(shard), step_(std::move(step)), rank_(rank), sums_(std::move(sums)), slot_map_epoch_(slot_map_epoch), outcome_(outcome) {}
  absl::Status Reserve(BlockId id, uint64_t bytes);
  absl::Status Add(BlockId id, Gradient gradient);

  Shard* const shard_;
  const StepId step_;
  const uint32_t rank_;
  std::vector<double> sums_;
  const uint64_t slot_map_epoch_;
  const PushOutcome outcome_;
  absl::Status error_;
  RankGradients gradients_;
  uint64_t reserved_bytes_ = 0;
  BlockId reserved_for_;  // the block on its way
};

class Shard {
 public:
  // Creates or opens the shard in options.data_directory. An existing one must have the same spec hash and server id
  // (FAILED_PRECONDITION names both). The head is the last committed checkpoint, or empty; leftovers of interrupted work are removed.
  static absl::StatusOr<std::unique_ptr<Shard>> Open(const BankSpec& spec, const SlotMap& slot_map, const ShardOptions& options);
  ~Shard();
  Shard(const Shard&) = delete;
  Shard& operator=(const Shard&) = delete;

  const BankSpec& spec() const { return spec_; }
  const std::string& spec_hash() const { return spec_hash_; }
  std::shared_ptr<const SlotMap> slot_map() const { return ownership_.map(); }
  const std::string& server_id() const { return options_.server_id; }
  AccessControl& access() const { return *access_; }
  const CheckpointStore& checkpoints() const { return *checkpoints_; }
  const std::string& replica_of() const { return options_.replica_of; }
  absl::Status CheckSlotMapEpoch(uint64_t callers_epoch) const { return ownership_.CheckEpoch(callers_epoch); }
  ShardStatus Status() const ABSL_LOCKS_EXCLUDED(run_mu_);

  // Wakes every waiting call with UNAVAILABLE and refuses new pushes, steps and checkpoints; reads go on.
  void Shutdown() ABSL_LOCKS_EXCLUDED(run_mu_);

  // --- Reading -------------------------------------------------------------------------------------------------------------------------
  // Is the block in the spec and on this server? Read and ReadVersion check it too.
  absl::Status CheckBlock(BlockId id) const;
  // The live head. newer_than >= 0: the version that the caller holds; `unchanged` when it is the block's. After a restore or a purge the
  // block's may be an older one.
  absl::StatusOr<BlockRead> Read(BlockId id, int64_t newer_than = -1, ReadFrom from = ReadFrom::kAnywhere);
  // A published version; NOT_FOUND lists those there are.
  absl::StatusOr<BlockRead> ReadVersion(const std::string& name, BlockId id, int64_t newer_than = -1, ReadFrom from = ReadFrom::kAnywhere);
  // These blocks of the live head are needed soon: those on disk are read ahead, as far as there is room. Returns at once.
  absl::Status Prefetch(absl::Span<const BlockId> ids);
  // Until head >= min_step; DEADLINE_EXCEEDED names both.
  absl::Status WaitForStep(uint64_t min_step, absl::Time deadline) ABSL_LOCKS_EXCLUDED(run_mu_);

  // --- Training ------------------------------------------------------------------------------------------------------------------------
  // Fences all older epochs, durably; drops their pushes that were not applied. The same settings again change nothing. FAILED_PRECONDITION
  // unless first_step is head + 1. Returns the head.
  absl::StatusOr<uint64_t> BeginRun(const RunSettings& settings) ABSL_LOCKS_EXCLUDED(train_mu_, run_mu_);
  // OUT_OF_RANGE names the expected step: a rank pushes its steps without gaps and at most 1 + staleness ahead of the head.
  // `sums`: numbers that are added over the ranks, see AwaitStep. `slot_map_epoch`: of the map by which the caller cut the push, 0 when it did
  // not say; FAILED_PRECONDITION unless it is this server's.
  absl::StatusOr<std::unique_ptr<GradientPush>> BeginPush(const StepId& step, uint32_t rank, std::vector<double> sums = {},
                                                          uint64_t slot_map_epoch = 0)
      ABSL_LOCKS_EXCLUDED(run_mu_);
  // Waits until all ranks have pushed `step`, which must be head + 1 (or become it before the deadline), sums their gradients in rank
  // order, and returns the sum of squares over ascending block ids. DEADLINE_EXCEEDED names the missing ranks. May be repeated.
  absl::StatusOr<double> PrepareStep(const StepId& step, absl::Time deadline) ABSL_LOCKS_EXCLUDED(train_mu_, run_mu_);
  // Runs the optimizer over the prepared step and returns the head. A step applied before is OK and changes nothing; one that was not
  // prepared is FAILED_PRECONDITION. With a memory budget it waits for room; RESOURCE_EXHAUSTED when the disk is full. If that happens in
  // the middle, the step is half applied: the same call again finishes it, until then checkpoints are refused, and so are runs, which
  // would give the step up, before a restore.
  absl::StatusOr<uint64_t> ApplyStep(const StepId& step, const ApplyParameters& parameters) ABSL_LOCKS_EXCLUDED(train_mu_, run_mu_);

  // Waits until the step is applied and returns the ranks' sums, added in rank order (none when it is not the last one applied).
  // DEADLINE_EXCEEDED says whom the step waits for.
  absl::StatusOr<std::vector<double>> AwaitStep(const StepId& step, absl::Time deadline) ABSL_LOCKS_EXCLUDED(run_mu_);
  // Rank 0 describes the active run; another rank waits until it has, and takes its place, once per epoch. DEADLINE_EXCEEDED says what is
  // missing. Repeating it with the same member_id is the same call.
  absl::StatusOr<JoinedRun> JoinRun(const RunMember& member, absl::Time deadline) ABSL_LOCKS_EXCLUDED(run_mu_);

  // --- Checkpoints and versions --------------------------------------------------------------------------------------------------------
  // Ids and names: 1-128 characters of [A-Za-z0-9._-], not starting with a dot.
  // Remembers the head, which must be at `step`, for PrepareCheckpoint with the same id and step: steps may go on at once. It costs no copy;
  // blocks that are updated meanwhile take their room twice. The next snapshot, a new epoch or a restore gives it up.
  absl::Status SnapshotCheckpoint(const std::string& id, uint64_t step) ABSL_LOCKS_EXCLUDED(cut_mu_, train_mu_, run_mu_);
  // A durable cut of the snapshot, or else of the head, which must be at `step`; written beside the steps that go on. May be repeated. A cut with this id from a history that was given up is replaced;
  // ALREADY_EXISTS when it is the last committed one.
  absl::Status PrepareCheckpoint(const std::string& id, uint64_t step) ABSL_LOCKS_EXCLUDED(cut_mu_, train_mu_, run_mu_);
  // OK when it is committed already; NOT_FOUND lists those there are. keep: committed ones to keep; 0 = options.keep_checkpoints.
  absl::Status CommitCheckpoint(const std::string& id, uint32_t keep = 0);
  absl::Status AbortCheckpoint(const std::string& id);    // OK when it is not there; FAILED_PRECONDITION when it is committed
  absl::Status DeleteCheckpoint(const std::string& id);   // OK when it is not there; FAILED_PRECONDITION for the last committed one
  // Makes a prepared or committed cut the head; afterwards it is the last committed one, and training goes on with a new epoch.
  // On error the head is as before. DATA_LOSS names block and file.
  absl::Status RestoreCheckpoint(const std::string& id) ABSL_LOCKS_EXCLUDED(cut_mu_, train_mu_, run_mu_);
  // Durability::kStep: gives up the steps after `step`, which lies between the last committed checkpoint and the head; a new epoch goes on
  // from there. After a crash, servers that acknowledged a step which others did not meet this way. OUT_OF_RANGE names what there is.
  absl::Status Rewind(uint64_t step) ABSL_LOCKS_EXCLUDED(cut_mu_, train_mu_, run_mu_);
  std::vector<CheckpointInfo> ListCheckpoints() const;    // oldest first
  // Reads every byte of a cut against its checksums and its manifest; what is damaged, each with block and directory. Beside training.
  absl::StatusOr<std::vector<std::string>> VerifyCheckpoint(const std::string& id) const;

  // A cut as a stream of frames (common/bank/block_frame.h), to be kept elsewhere, and back as a prepared cut of this shard, whose slots may
  // differ. One reader and one writer at a time; another id begins anew. See checkpoint_stream.h for positions and offsets.
  absl::Status ReadCheckpoint(const std::string& id, const CutReader::Position& position, uint64_t max_bytes,
                              const std::function<void(const CutReader::Piece&, const CutMarks&)>& visit) ABSL_LOCKS_EXCLUDED(transfer_mu_);
  absl::Status WriteCheckpoint(const std::string& id, uint64_t offset, absl::Span<const uint8_t> bytes) ABSL_LOCKS_EXCLUDED(transfer_mu_);
  absl::Status FinishWriteCheckpoint(const std::string& id, const CutMarks& marks) ABSL_LOCKS_EXCLUDED(transfer_mu_, cut_mu_);
  // The weights of a committed checkpoint as an immutable version. The same again is OK; another checkpoint's, or another form, is ALREADY_EXISTS.
  // kBank shares the checkpoint's files; kI8Rows reads and checks every block and writes it anew, see quantise.h.
  absl::Status Publish(const std::string& checkpoint_id, const std::string& version, PayloadType payload = PayloadType::kBank)
      ABSL_LOCKS_EXCLUDED(cut_mu_, run_mu_);
  std::vector<BankVersion> ListVersions() const;
  // Makes the blocks of the prefix as if they had never been trained, in the head, every checkpoint and version, and the step log, and leaves
  // none of their bytes in any file. Ends the run, like a restore, but the head stays at its step. What a crash or an error interrupted, the
  // next start or purge finishes. See shard_purge.cc.
  absl::StatusOr<PurgeResult> Purge(TreePrefix prefix) ABSL_LOCKS_EXCLUDED(transfer_mu_, cut_mu_, train_mu_, run_mu_);

 private:
  friend class GradientPush;
  friend class SlotMover;  // slot_move.h: exports, seals and adopts slots
  struct PendingStep;  // pushes of a step that is not applied yet
  struct Snapshot;     // the head as it was when a checkpoint began
  struct Head;         // everything a cut holds: blocks and dedup marks

  Shard(const BankSpec& spec, const SlotMap& slot_map, const ShardOptions& options);

  absl::Status CheckInSpec(BlockId id) const;
  absl::Status CheckNoReplica() const;
  static BlockRead AnswerRead(const CachedPayload& payload, int64_t newer_than);
  absl::StatusOr<BlockRead> ReadStoredVersion(const CheckpointStore::Version& version, BlockId id, int64_t newer_than, ReadFrom from);
  CachedPayload ReadUntouched(BlockId id, PayloadType type = PayloadType::kBank);
  absl::Status CheckFreeSpace(uint64_t needed_bytes) const;
  absl::Status CheckRun(const StepId& step) const ABSL_SHARED_LOCKS_REQUIRED(run_mu_);
  absl::StatusOr<PushOutcome> JudgePush(const StepId& step, uint32_t rank) const ABSL_SHARED_LOCKS_REQUIRED(run_mu_);
  absl::StatusOr<PushOutcome> FinishPush(GradientPush* push) ABSL_LOCKS_EXCLUDED(run_mu_);
  absl::Status ReservePushBytes(uint64_t bytes) ABSL_LOCKS_EXCLUDED(run_mu_);
  void AddPushedBytes(int64_t bytes) ABSL_LOCKS_EXCLUDED(run_mu_);
  void DropPending() ABSL_EXCLUSIVE_LOCKS_REQUIRED(run_mu_);
  absl::Status WaitForRanks(const StepId& step, absl::Time deadline) ABSL_LOCKS_EXCLUDED(run_mu_);
  std::string MissingRanks(uint64_t step) const ABSL_SHARED_LOCKS_REQUIRED(run_mu_);
  std::string WhyHeadWaits() const ABSL_SHARED_LOCKS_REQUIRED(run_mu_);
  std::string WhyNotJoined(const RunMember& member) const ABSL_SHARED_LOCKS_REQUIRED(run_mu_);
  absl::Status UpdateBlocks(const RankGradients& sum, const RunSettings& run, uint64_t step, const ApplyParameters& parameters)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(train_mu_);
  absl::Status CheckSpillSpace(const PendingStep& pending, const RunSettings& run) const;
  double SumRanks(PendingStep* pending) ABSL_EXCLUSIVE_LOCKS_REQUIRED(train_mu_);
  absl::Status UpdateBlock(BlockId id, const Gradient& gradient, const RunSettings& run, uint64_t step, const ApplyParameters& parameters);
  absl::Status LoadRuns() ABSL_LOCKS_EXCLUDED(run_mu_);
  absl::Status WriteRuns(const RunEpochs& epochs) const;
  std::unique_ptr<Snapshot> ClaimSnapshot(const std::string& id, uint64_t step) ABSL_LOCKS_EXCLUDED(snapshot_mu_);
  void SetSnapshot(std::unique_ptr<Snapshot> snapshot) ABSL_LOCKS_EXCLUDED(snapshot_mu_);
  bool HasSnapshot() ABSL_LOCKS_EXCLUDED(snapshot_mu_);
  absl::Status CheckBegin(const RunSettings& settings) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(run_mu_);
  bool IsSealed() const ABSL_SHARED_LOCKS_REQUIRED(run_mu_) { return seal_.has_value() && absl::Now() < seal_->until; }
  absl::Status AwaitCutsThawed() ABSL_EXCLUSIVE_LOCKS_REQUIRED(cut_mu_) ABSL_LOCKS_EXCLUDED(run_mu_);
  absl::Status TakeSnapshot(const std::string& id, uint64_t step) ABSL_EXCLUSIVE_LOCKS_REQUIRED(cut_mu_, train_mu_) ABSL_LOCKS_EXCLUDED(run_mu_);
  // FAILED_PRECONDITION names both epochs when the cut lacks some of the slots that `map` gives to this server.
  absl::Status CheckHolds(const Cut& cut, const SlotMap& map) const;
  // What the cut has for those slots.
  absl::StatusOr<Head> LoadCut(const Cut& cut, const SlotMap& map) const;
  absl::StatusOr<BlockTable::LiveStores> OpenHeadStores(const std::optional<Cut>& cut, const std::vector<BlockId>& foreign);
  // The step log (shard_step_log.cc); all nothing with Durability::kCheckpoint.
  absl::Status LogGradients(const RunSettings& run, uint64_t step, PendingStep* pending) ABSL_EXCLUSIVE_LOCKS_REQUIRED(train_mu_);
  absl::Status LogApply(const RunSettings& run, uint64_t step, const ApplyParameters& parameters, PendingStep* pending)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(train_mu_);
  absl::Status LogCut(const std::string& id, const CutMarks& marks) ABSL_EXCLUSIVE_LOCKS_REQUIRED(train_mu_);
  absl::Status LogCommit(const Cut& cut) ABSL_EXCLUSIVE_LOCKS_REQUIRED(train_mu_);
  absl::Status LogRestore(const std::optional<Cut>& cut, const SlotSet& slots) ABSL_EXCLUSIVE_LOCKS_REQUIRED(train_mu_);
  absl::Status OpenLog(const std::optional<Cut>& cut) ABSL_EXCLUSIVE_LOCKS_REQUIRED(train_mu_) ABSL_LOCKS_EXCLUDED(run_mu_);
  absl::StatusOr<SlotSet> ReplayLog(const std::optional<Cut>& cut, uint64_t last_step) ABSL_EXCLUSIVE_LOCKS_REQUIRED(train_mu_)
      ABSL_LOCKS_EXCLUDED(run_mu_);
  absl::Status ApplyLogged(LoggedStep logged) ABSL_EXCLUSIVE_LOCKS_REQUIRED(train_mu_) ABSL_LOCKS_EXCLUDED(run_mu_);
  absl::Status TakeLogged(const SlotsTaken& taken, const std::vector<LoggedImage>& images, const SlotSet& mine) ABSL_EXCLUSIVE_LOCKS_REQUIRED(train_mu_)
      ABSL_LOCKS_EXCLUDED(run_mu_);
  void DropSlots(const SlotSet& slots) ABSL_EXCLUSIVE_LOCKS_REQUIRED(train_mu_);
  absl::Status InstallImage(BlockImage image) ABSL_EXCLUSIVE_LOCKS_REQUIRED(train_mu_);
  absl::Status KeepFences(RunEpochs epochs) ABSL_EXCLUSIVE_LOCKS_REQUIRED(train_mu_) ABSL_LOCKS_EXCLUDED(run_mu_);
  absl::StatusOr<PurgeResult> PurgeEverywhere(const std::vector<TreePrefix>& prefixes) ABSL_EXCLUSIVE_LOCKS_REQUIRED(cut_mu_, train_mu_);
  absl::Status FinishPurges() ABSL_LOCKS_EXCLUDED(cut_mu_, train_mu_);
  void EndRun() ABSL_EXCLUSIVE_LOCKS_REQUIRED(run_mu_);
  // The head becomes what the cut (none: the untouched bank) has for the server's slots by `map`.
  absl::Status LoadHead(const std::optional<Cut>& cut, const SlotMap& map) ABSL_EXCLUSIVE_LOCKS_REQUIRED(train_mu_) ABSL_LOCKS_EXCLUDED(run_mu_);
  // The same, and the logged steps that followed the cut are given up; slots that `map` does not give to this server are refused from here on.
  absl::Status GiveUpStepsSince(const std::optional<Cut>& cut, const SlotMap& map) ABSL_EXCLUSIVE_LOCKS_REQUIRED(train_mu_) ABSL_LOCKS_EXCLUDED(run_mu_);
  void InstallHead(Head head, BlockTable::LiveStores stores) ABSL_EXCLUSIVE_LOCKS_REQUIRED(train_mu_) ABSL_LOCKS_EXCLUDED(run_mu_);

  const BankSpec spec_;
  const std::string spec_hash_;
  const ShardOptions options_;
  SlotOwnership ownership_;                    // thread-safe; replaced under train_mu_ only
  std::unique_ptr<DirectoryLock> directory_lock_;
  std::unique_ptr<AccessControl> access_;      // thread-safe; asked by the calls, not by the shard
  const std::shared_ptr<BufferPool> buffers_;  // thread-safe
  PayloadCache generated_;                     // thread-safe: untouched blocks
  PayloadCache version_payloads_;              // thread-safe: blocks of published versions
  std::unique_ptr<CheckpointStore> checkpoints_;  // changed under cut_mu_ only, read by any thread
  std::unique_ptr<BlockTable> table_;             // thread-safe; gone before what it writes through
  ThreadPool pool_;

  // One checkpoint operation at a time; held over I/O, steps go on.
  absl::Mutex cut_mu_ ABSL_ACQUIRED_BEFORE(train_mu_);
  absl::Time cuts_frozen_until_ ABSL_GUARDED_BY(cut_mu_) = absl::InfinitePast();  // slots are switching: checkpoint operations wait

  // One step, snapshot or restore at a time.
  mutable absl::Mutex train_mu_ ABSL_ACQUIRED_BEFORE(run_mu_);

  std::unique_ptr<StepLog> step_log_ ABSL_GUARDED_BY(train_mu_);
  uint64_t slots_since_ ABSL_GUARDED_BY(train_mu_) = 0;     // the head cannot go back behind this step: slots moved here then
  absl::Mutex snapshot_mu_ ABSL_ACQUIRED_AFTER(train_mu_);  // the pointer only: PrepareCheckpoint takes it while a step waits for its room
  std::unique_ptr<Snapshot> snapshot_ ABSL_GUARDED_BY(snapshot_mu_);

  // Checkpoints going out and coming in.
  absl::Mutex transfer_mu_ ABSL_ACQUIRED_BEFORE(cut_mu_);
  std::unique_ptr<CutReader> reader_ ABSL_GUARDED_BY(transfer_mu_);
  std::unique_ptr<CutWriter> writer_ ABSL_GUARDED_BY(transfer_mu_);
  HeldSlots writer_slots_ ABSL_GUARDED_BY(transfer_mu_);    // what the checkpoint coming in is to hold

  // Run, pushes and head.
  mutable absl::Mutex run_mu_;
  bool stopping_ ABSL_GUARDED_BY(run_mu_) = false;
  bool run_active_ ABSL_GUARDED_BY(run_mu_) = false;                      // false until BeginRun after a start, restore or purge
  RunSettings run_ ABSL_GUARDED_BY(run_mu_);
  RunEpochs run_epochs_ ABSL_GUARDED_BY(run_mu_);   // highest epoch ever begun; durable in runs.json
  uint64_t head_step_ ABSL_GUARDED_BY(run_mu_) = 0;
  std::vector<uint64_t> next_step_ ABSL_GUARDED_BY(run_mu_);              // per rank
  std::map<uint64_t, std::unique_ptr<PendingStep>> pending_ ABSL_GUARDED_BY(run_mu_);
  std::optional<double> head_sum_of_squares_ ABSL_GUARDED_BY(run_mu_);    // of the step applied last, for a repeated PrepareStep
  std::vector<double> head_sums_ ABSL_GUARDED_BY(run_mu_);                // of the step applied last
  std::vector<std::string> members_ ABSL_GUARDED_BY(run_mu_);             // per rank: who joined the active epoch; empty: nobody yet
  std::string run_description_ ABSL_GUARDED_BY(run_mu_);                  // rank 0's
  uint64_t pushed_bytes_ ABSL_GUARDED_BY(run_mu_) = 0;
  uint64_t torn_step_ ABSL_GUARDED_BY(run_mu_) = 0;                       // half applied and given up: only a restore helps; 0: none
  uint64_t head_generation_ ABSL_GUARDED_BY(run_mu_) = 0;                 // another random number whenever the head is replaced
  struct Seal {                                                           // slots are switching: no push from `first_refused` on
    std::string move_id;
    uint64_t first_refused = 0;
    absl::Time until;
  };
  std::optional<Seal> seal_ ABSL_GUARDED_BY(run_mu_);
};

}  // namespace membank
