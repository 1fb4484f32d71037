// Moving slots between running servers: copy, catch up, fence, switch. The new owner pulls (slot_stream.h) from the old one
//   copy      the old owner's cuts, versions and touched blocks with their optimizer state, while training and serving go on;
//   catch up  the blocks that steps changed meanwhile, until little is left;
//   fence     both servers are sealed: they refuse pushes from one step on and hold checkpoint calls back; when the step before is applied
//             the last changes are copied, and both hold the slots at one and the same step;
//   switch    the slot map is replaced where it lives (common/bank/slot_map_source.h). That replacement alone changes the owner. Each server
//             adopts the new map when it is told or when it looks: the old owner drops the blocks, the new one makes them its own.
// Whatever dies before the replacement leaves the old owner, after it the new one. Cuts were moved before: a server that starts again finds
// its last committed checkpoint with the slots it owns now. With durability class step the blocks are in the new owner's step log before the
// replacement (step_log.h), so it finds them as they were at the fence, and the steps since. A server that adopts slots without a finished copy (it was restarted, a lease ran
// out) goes back to that checkpoint, too, and its run must be begun again: never silently, never with two histories.
//
// The engine's part; no gRPC. Thread-safe; at most one move into a server and one seal at a time.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "memory_server/cut_merge.h"
#include "memory_server/shard.h"

namespace membank {

// What the old owner is and has, when a round of copying begins.
struct SlotSourceState {
  uint64_t generation = 0;                      // another number: its head was replaced, all blocks are to be copied anew
  uint64_t head_step = 0;
  bool run_active = false;
  RunSettings run;
  RunEpochs run_epochs;   // fences
  std::string sealed_by;                        // the move that sealed it, and every step before the fence is applied
  std::vector<MergeSource> cuts, versions;      // oldest first
  std::vector<uint64_t> slot_bytes;             // payloads of touched blocks, by slot
};

class SlotMover {
 public:
  explicit SlotMover(Shard* shard);
  AccessControl& access() const { return shard_->access(); }
  ~SlotMover();

  // --- Old owner -----------------------------------------------------------------------------------------------------------------------
  SlotSourceState State() const;
  // A block as store records, in ascending order. The records are borrowed for the call; an error stops with it.
  using Visitor = std::function<absl::Status(BlockId id, absl::Span<const uint8_t> weights, absl::Span<const uint8_t> state)>;
  // Blocks of the head whose version is above `newer_than`; each is whole, steps go on between two of them. ABORTED when the head is replaced.
  absl::Status ExportHead(const SlotSet& slots, uint64_t newer_than, const Visitor& visit) const;
  absl::Status ExportCut(const std::string& checkpoint_id, const SlotSet& slots, const Visitor& visit) const;
  // `base`: only blocks that differ from this version; those that only it has come without records. Empty: all.
  absl::Status ExportVersion(const std::string& version, const SlotSet& slots, const std::string& base, const Visitor& visit) const;

  // --- Both ----------------------------------------------------------------------------------------------------------------------------
  // Refuses pushes from step `at_least` on (or a later one, when such steps were pushed before) and holds checkpoint calls back, for `lease`;
  // returns that step. Again with the same id renews it. ABORTED: another move has sealed this server, this one's seal had run out, or a
  // checkpoint is being made.
  absl::StatusOr<uint64_t> Seal(const std::string& move_id, uint64_t at_least, absl::Duration lease);
  // Until every step before the fence is applied; DEADLINE_EXCEEDED says which is not.
  absl::Status AwaitSealed(const std::string& move_id, absl::Time deadline) const;
  void Unseal(const std::string& move_id, bool keep_copy);
  // Follows `map` when it is newer; one call at a time.
  absl::Status Adopt(const SlotMap& map);

  // --- New owner -----------------------------------------------------------------------------------------------------------------------
  // Begins a round; returns the step up to which the head's blocks were copied before. Everything is forgotten when the move or the source's
  // generation is another one than in the last round.
  absl::StatusOr<uint64_t> BeginRound(const std::string& move_id, const SlotSet& slots, const SlotSourceState& source);
  absl::Status Stage(const std::string& move_id, BlockId id, absl::Span<const uint8_t> weights, absl::Span<const uint8_t> state);
  // Is this cut or version here with all the slots?
  bool Holds(const MergeSource& source, const SlotSet& slots) const;
  // Null when the server does not have the source's cut and needs none: it was in the cluster when the cut was made and has lost it since.
  absl::StatusOr<std::unique_ptr<CutMerge>> BeginMerge(const MergeSource& source, const SlotSet& slots, const std::string& base = "");
  absl::Status Install(CutMerge* merge);
  // On a server that joins: its cuts become committed as the source's are, so that a restart goes back to the same one.
  absl::Status CommitAs(const SlotSourceState& source);
  // Ends a round. `last`: both servers are sealed, and from now on Adopt may make the slots this server's own.
  absl::Status EndRound(const std::string& move_id, const SlotSet& slots, const SlotSourceState& source, bool last);

 private:
  struct Incoming;

  absl::Status UnlessRemoved(const std::string& checkpoint_id, const absl::Status& error) const;
  bool Listed() const;  // in the slot map? A server that is not joins the run of the first slots it gets.
  absl::Status CheckMovable() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(shard_->train_mu_);
  absl::StatusOr<uint64_t> SealBesideCuts(const std::string& move_id, uint64_t at_least, absl::Duration lease)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(shard_->cut_mu_);
  bool AtOneStep(const SlotSourceState& source) const ABSL_SHARED_LOCKS_REQUIRED(shard_->run_mu_);
  absl::Status CheckAtOneStep(const SlotSourceState& source) const ABSL_LOCKS_EXCLUDED(shard_->run_mu_);
  bool IsFenced() const ABSL_SHARED_LOCKS_REQUIRED(shard_->run_mu_);
  absl::Status Switch(const SlotMap& map, const SlotSet& lost, const SlotSet& gained)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(shard_->cut_mu_, shard_->train_mu_);
  bool IsWaiting(const SlotSet& gained) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(shard_->train_mu_);
  absl::Status TakeSlotsFromLog(const SlotSet& gained) ABSL_EXCLUSIVE_LOCKS_REQUIRED(shard_->train_mu_);
  absl::Status TakeSlots(Incoming* incoming) ABSL_EXCLUSIVE_LOCKS_REQUIRED(shard_->train_mu_);
  absl::Status LogTaken(const std::string& move_id, const SlotSourceState& source) ABSL_EXCLUSIVE_LOCKS_REQUIRED(shard_->train_mu_);
  absl::Status GoBackToLastCheckpoint(const SlotMap& map) ABSL_EXCLUSIVE_LOCKS_REQUIRED(shard_->train_mu_);

  Shard* const shard_;
  mutable absl::Mutex mu_;  // taken after the shard's locks
  std::unique_ptr<Incoming> incoming_ ABSL_GUARDED_BY(mu_);
};

}  // namespace membank
