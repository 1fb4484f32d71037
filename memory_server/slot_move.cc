#include "memory_server/slot_move.h"

#include <algorithm>

#include "absl/time/clock.h"
#include "common/base/fail_point.h"
#include "common/base/log.h"
#include "common/base/status_macros.h"
#include "memory_server/block_record.h"
#include "memory_server/shard_state.h"

namespace membank {
namespace {

void Append(absl::Span<const uint8_t> bytes, std::vector<uint8_t>* out) { out->insert(out->end(), bytes.begin(), bytes.end()); }

void Append(const std::string& bytes, std::vector<uint8_t>* out) { out->insert(out->end(), bytes.begin(), bytes.end()); }

}  // namespace

struct SlotMover::Incoming {
  std::string move_id;
  SlotSet slots;
  uint64_t generation = 0;
  uint64_t copied_step = 0;      // every block is here as it was at this step, or newer
  bool complete = false;
  SlotSourceState source;        // of the last round
  absl::flat_hash_map<BlockId, BlockImage> blocks;
};

SlotMover::SlotMover(Shard* shard) : shard_(shard) {}
SlotMover::~SlotMover() = default;

bool SlotMover::Listed() const { return shard_->slot_map()->ServerIndex(shard_->server_id()).ok(); }

// --- Old owner -----------------------------------------------------------------------------------------------------------------------------

SlotSourceState SlotMover::State() const {
  SlotSourceState state;
  state.slot_bytes.assign(kSlots, 0);
  {
    absl::MutexLock lock(&shard_->run_mu_);
    state.generation = shard_->head_generation_;
    state.head_step = shard_->head_step_;
    state.run_active = shard_->run_active_;
    state.run = shard_->run_;
    state.run_epochs = shard_->run_epochs_;
    if (shard_->IsSealed() && shard_->seal_->first_refused == shard_->head_step_ + 1)
      state.sealed_by = shard_->seal_->move_id;
  }
  for (const BlockTable::Listed& block : shard_->table_->List()) state.slot_bytes[SlotOf(block.id)] += block.payload_bytes;
  for (const Cut& cut : shard_->checkpoints_->List()) state.cuts.push_back({cut.id, "", cut.marks, cut.committed, cut.digest});
  for (const auto& [name, payload] : shard_->checkpoints_->ListVersions()) {
    const absl::StatusOr<CheckpointStore::Version> version = shard_->checkpoints_->FindVersion(name);
    if (version.ok()) state.versions.push_back({version->checkpoint_id, name, version->marks, 0, version->digest, payload});
  }
  return state;
}

absl::Status SlotMover::ExportHead(const SlotSet& slots, uint64_t newer_than, const Visitor& visit) const {
  std::vector<BlockId> ids;
  const uint64_t generation = State().generation;
  for (const BlockTable::Listed& block : shard_->table_->List())
    if (slots[SlotOf(block.id)] && block.version > newer_than) ids.push_back(block.id);
  std::sort(ids.begin(), ids.end());
  std::vector<uint8_t> weights, state;
  for (BlockId id : ids) {
    {
      absl::MutexLock train(&shard_->train_mu_);  // for one block: no step changes it meanwhile
      {
        absl::MutexLock lock(&shard_->run_mu_);
        if (shard_->head_generation_ != generation)
          return Aborted("the head of server \"{}\" was replaced while its slots were copied", shard_->server_id());
      }
      const absl::StatusOr<BlockImage> image = shard_->table_->ReadImage(id);
      if (absl::IsNotFound(image.status())) return Aborted("block {} left server \"{}\" while it was copied", ToString(id), shard_->server_id());
      RETURN_IF_ERROR(image.status());
      const ImageRecords records = RecordsOf(*image);
      weights.clear();
      state.clear();
      Append(records.weights_header, &weights);
      Append(records.payload, &weights);
      Append(records.state_header, &state);
      for (absl::Span<const uint8_t> array : records.state) Append(array, &state);
    }
    RETURN_IF_ERROR(visit(id, weights, state));
  }
  return absl::OkStatus();
}

// Checkpoints are removed beside a move that copies them; one that is open can be read to its end.
absl::Status SlotMover::UnlessRemoved(const std::string& checkpoint_id, const absl::Status& error) const {
  if (shard_->checkpoints_->Find(checkpoint_id).ok()) return error;
  return Aborted("checkpoint {} was removed from server \"{}\" while it was copied", checkpoint_id, shard_->server_id());
}

absl::Status SlotMover::ExportCut(const std::string& checkpoint_id, const SlotSet& slots, const Visitor& visit) const {
  ASSIGN_OR_RETURN(const Cut cut, shard_->checkpoints_->Find(checkpoint_id));
  const absl::StatusOr<HeadStores> opened = shard_->checkpoints_->OpenCut(cut);
  if (!opened.ok()) return UnlessRemoved(checkpoint_id, opened.status());
  const HeadStores& stores = *opened;
  const uint64_t purges = shard_->checkpoints_->purges();
  return stores.weights->Scan(kBlockKeyPrefix, [&](std::string_view key, absl::Span<const uint8_t> weights) -> absl::Status {
    ASSIGN_OR_RETURN(const BlockId id, ParseBlockKey(key));
    if (shard_->checkpoints_->purges() != purges) return Aborted("blocks were purged on server \"{}\" while its slots were copied", shard_->server_id());
    if (!slots[SlotOf(id)]) return absl::OkStatus();
    absl::Status visited;
    RETURN_IF_ERROR(stores.state->Get(key, [&](absl::Span<const uint8_t> state) { visited = visit(id, weights, state); }));
    return visited;
  });
}

absl::Status SlotMover::ExportVersion(const std::string& name, const SlotSet& slots, const std::string& base, const Visitor& visit) const {
  ASSIGN_OR_RETURN(const CheckpointStore::Version version, shard_->checkpoints_->FindVersion(name));
  absl::flat_hash_map<BlockId, std::pair<uint64_t, uint32_t>> known;  // of the base: version and checksum
  if (!base.empty()) {
    ASSIGN_OR_RETURN(const CheckpointStore::Version before, shard_->checkpoints_->FindVersion(base));
    if ((slots & ~before.held.slots).any()) return FailedPrecondition("version {} does not hold all of slots {}", base, FormatSlots(slots));
    if (before.payload != version.payload) return FailedPrecondition("versions {} and {} have payloads of different forms", base, name);
    RETURN_IF_ERROR(before.weights->Scan(kBlockKeyPrefix, [&](std::string_view key, absl::Span<const uint8_t> weights) -> absl::Status {
      ASSIGN_OR_RETURN(const BlockId id, ParseBlockKey(key));
      ASSIGN_OR_RETURN(const WeightsRecord record, DecodeWeightsHeader(weights));
      if (slots[SlotOf(id)]) known[id] = {record.version, record.crc32c};
      return absl::OkStatus();
    }));
  }
  RETURN_IF_ERROR(version.weights->Scan(kBlockKeyPrefix, [&](std::string_view key, absl::Span<const uint8_t> weights) -> absl::Status {
    ASSIGN_OR_RETURN(const BlockId id, ParseBlockKey(key));
    if (!slots[SlotOf(id)]) return absl::OkStatus();
    ASSIGN_OR_RETURN(const WeightsRecord record, DecodeWeightsHeader(weights));
    const auto same = known.find(id);
    const bool unchanged = same != known.end() && same->second == std::make_pair(record.version, record.crc32c);
    if (same != known.end()) known.erase(same);
    return unchanged ? absl::OkStatus() : visit(id, weights, {});
  }));
  for (const auto& [id, ignored] : known) RETURN_IF_ERROR(visit(id, {}, {}));
  return absl::OkStatus();
}

// --- Both ----------------------------------------------------------------------------------------------------------------------------------

// A log that is not written any more would not hear of the move.
absl::Status SlotMover::CheckMovable() const {
  if (shard_->options_.durability == Durability::kStep || shard_->step_log_->empty()) return absl::OkStatus();
  return FailedPrecondition("server \"{}\" has steps in its log since it ran with durability class step; commit a checkpoint, then move slots",
                            shard_->server_id());
}

// Never waits for a checkpoint that is being written: steps would stand still as long.
absl::StatusOr<uint64_t> SlotMover::Seal(const std::string& move_id, uint64_t at_least, absl::Duration lease) {
  if (!shard_->cut_mu_.TryLock()) return Aborted("a checkpoint is being written on server \"{}\"; seal it again when it is done", shard_->server_id());
  const absl::StatusOr<uint64_t> first = SealBesideCuts(move_id, at_least, lease);
  shard_->cut_mu_.Unlock();
  return first;
}

absl::StatusOr<uint64_t> SlotMover::SealBesideCuts(const std::string& move_id, uint64_t at_least, absl::Duration lease) {
  absl::MutexLock train(&shard_->train_mu_);
  RETURN_IF_ERROR(CheckMovable());
  if (shard_->HasSnapshot())
    return Aborted("a checkpoint of server \"{}\" has begun and is not written yet; seal it again when it is done", shard_->server_id());
  absl::MutexLock lock(&shard_->run_mu_);
  if (shard_->torn_step_ != 0)
    return FailedPrecondition("the head of server \"{}\" holds half of step {}; restore a checkpoint, then move slots", shard_->server_id(),
                              shard_->torn_step_);
  const absl::Time now = absl::Now();
  std::optional<Shard::Seal>& seal = shard_->seal_;
  if (seal.has_value() && seal->move_id != move_id && now < seal->until)
    return Aborted("server \"{}\" is sealed by the move {}; wait until it ends", shard_->server_id(), seal->move_id);
  if (seal.has_value() && seal->move_id == move_id && now >= seal->until) {
    seal.reset();
    return Aborted("the seal of the move {} on server \"{}\" had run out", move_id, shard_->server_id());
  }
  uint64_t first = std::max(at_least, shard_->head_step_ + 1);
  if (shard_->run_active_)
    for (uint64_t next : shard_->next_step_) first = std::max(first, next);
  seal = Shard::Seal{move_id, first, now + lease};
  shard_->cuts_frozen_until_ = now + lease;
  return first;
}

absl::Status SlotMover::AwaitSealed(const std::string& move_id, absl::Time deadline) const {
  absl::MutexLock lock(&shard_->run_mu_);
  const auto sealed = [&]() ABSL_SHARED_LOCKS_REQUIRED(shard_->run_mu_) {
    return shard_->seal_.has_value() && shard_->seal_->move_id == move_id && absl::Now() < shard_->seal_->until;
  };
  const auto decided = [&]() ABSL_SHARED_LOCKS_REQUIRED(shard_->run_mu_) {
    return shard_->stopping_ || !sealed() || shard_->head_step_ + 1 >= shard_->seal_->first_refused;
  };
  const bool in_time = shard_->run_mu_.AwaitWithDeadline(absl::Condition(&decided), deadline);
  if (!sealed()) return Aborted("server \"{}\" is not sealed by the move {} any more", shard_->server_id(), move_id);
  if (in_time && shard_->head_step_ + 1 >= shard_->seal_->first_refused) return absl::OkStatus();
  if (!shard_->run_active_)
    return DeadlineExceeded("server \"{}\" is at step {} and no run goes on there, the other server is at step {}", shard_->server_id(),
                            shard_->head_step_, shard_->seal_->first_refused - 1);
  return DeadlineExceeded("step {} was pushed to server \"{}\", but step {} of run {} was not applied in time; it waits for ranks {}",
                          shard_->seal_->first_refused - 1, shard_->server_id(), shard_->head_step_ + 1, shard_->run_.run_id,
                          shard_->MissingRanks(shard_->head_step_ + 1));
}

void SlotMover::Unseal(const std::string& move_id, bool keep_copy) {
  std::unique_ptr<Incoming> forgotten;  // freed after the locks
  bool sealed;
  const auto is_sealed = [&]() ABSL_SHARED_LOCKS_REQUIRED(shard_->run_mu_) {
    return shard_->seal_.has_value() && shard_->seal_->move_id == move_id;
  };
  {
    absl::MutexLock lock(&shard_->run_mu_);
    sealed = is_sealed();
  }
  if (sealed) {  // then no checkpoint is being written that it would wait for
    absl::MutexLock cut(&shard_->cut_mu_);
    absl::MutexLock lock(&shard_->run_mu_);
    if (is_sealed()) {
      shard_->seal_.reset();
      shard_->cuts_frozen_until_ = absl::InfinitePast();
    }
  }
  absl::MutexLock own(&mu_);
  if (incoming_ == nullptr || incoming_->move_id != move_id) return;
  incoming_->complete = false;
  if (!keep_copy) forgotten.swap(incoming_);
}

// Do both servers hold the slots at one and the same step? A server that is not listed has no steps of its own.
bool SlotMover::AtOneStep(const SlotSourceState& source) const {
  if (!Listed()) return !shard_->run_active_;
  return shard_->head_step_ == source.head_step && shard_->run_ == source.run && shard_->run_active_ == source.run_active;
}

absl::Status SlotMover::CheckAtOneStep(const SlotSourceState& source) const {
  absl::MutexLock lock(&shard_->run_mu_);
  if (AtOneStep(source)) return absl::OkStatus();
  return Aborted("server \"{}\" is at step {} of run \"{}\" epoch {}, the old owner at step {} of run \"{}\" epoch {}", shard_->server_id(),
                 shard_->head_step_, shard_->run_.run_id, shard_->run_.epoch, source.head_step, source.run.run_id, source.run.epoch);
}

bool SlotMover::IsFenced() const {
  return shard_->seal_.has_value() && shard_->pending_.empty() && shard_->head_step_ + 1 == shard_->seal_->first_refused;
}

absl::Status SlotMover::Adopt(const SlotMap& map) {
  const std::shared_ptr<const SlotMap> current = shard_->slot_map();
  if (map.epoch() <= current->epoch()) return absl::OkStatus();
  const std::string& id = shard_->server_id();
  const SlotSet before = current->SlotsOf(id), after = map.SlotsOf(id), lost = before & ~after, gained = after & ~before;
  if (!shard_->replica_of().empty() || (lost.none() && gained.none())) {  // a checkpoint that is being written need not end first
    absl::MutexLock train(&shard_->train_mu_);
    absl::MutexLock lock(&shard_->run_mu_);
    shard_->ownership_.Adopt(map);
    return absl::OkStatus();
  }
  absl::MutexLock cut(&shard_->cut_mu_);
  shard_->SetSnapshot(nullptr);  // none when the server is sealed; before train_mu_: a step may be waiting for the room of its images
  absl::MutexLock train(&shard_->train_mu_);
  RETURN_IF_ERROR(CheckMovable());
  return Switch(map, lost, gained);
}

absl::Status SlotMover::Switch(const SlotMap& map, const SlotSet& lost, const SlotSet& gained) {
  const std::shared_ptr<const SlotMap> current = shard_->slot_map();
  const SlotSet after = map.SlotsOf(shard_->server_id());
  std::unique_ptr<Incoming> incoming;
  if (gained.any()) {
    absl::MutexLock lock(&mu_);
    incoming.swap(incoming_);
  }
  bool fenced, usable;
  {
    absl::MutexLock lock(&shard_->run_mu_);
    fenced = IsFenced();
    usable = incoming != nullptr && incoming->complete && (gained & ~incoming->slots).none() && AtOneStep(incoming->source) && (fenced || !Listed());
  }
  const bool durable = shard_->options_.durability == Durability::kStep, waiting = durable && gained.any() && IsWaiting(gained);
  if (durable) usable = usable && waiting;
  if (gained.any() && !usable && !waiting) {
    RETURN_IF_ERROR(GoBackToLastCheckpoint(map));
  } else {
    shard_->ownership_.Restrict(after);
    absl::Status followed;
    if (gained.any()) followed = usable ? TakeSlots(incoming.get()) : TakeSlotsFromLog(gained);
    if (followed.ok() && durable) followed = shard_->step_log_->WriteOwned(after);
    MEMBANK_FAIL_POINT("slots.owned");
    if (!followed.ok()) {  // no room: what the next look does, from the checkpoint
      LOG_ERROR("slot map epoch {} cannot be followed: {}", map.epoch(), followed.ToString());
      shard_->DropSlots(gained);
      shard_->ownership_.Adopt(*current);
      return followed;
    }
    if (lost.any()) shard_->DropSlots(lost);
  }
  absl::MutexLock lock(&shard_->run_mu_);
  if (lost.any() && !fenced && shard_->run_active_) {
    LOG_WARN("slots {} left this server without a fence; its run ends here and is to be begun again from a checkpoint", FormatSlots(lost));
    shard_->run_active_ = false;
    shard_->DropPending();
  }
  shard_->ownership_.Adopt(map);
  shard_->seal_.reset();
  shard_->cuts_frozen_until_ = absl::InfinitePast();
  LOG_INFO("slot map epoch {}: {} slots, {} taken over, {} given up", map.epoch(), after.count(), gained.count(), lost.count());
  return absl::OkStatus();
}

// Class step: the log has the slots as they were at the fence, and no step came since.
bool SlotMover::IsWaiting(const SlotSet& gained) const {
  const std::optional<SlotsTaken>& waiting = shard_->step_log_->waiting();
  if (!waiting.has_value() || (gained & ~waiting->slots).any() || waiting->joins == Listed()) return false;
  absl::MutexLock lock(&shard_->run_mu_);
  return waiting->joins ? !shard_->run_active_ : shard_->head_step_ == waiting->marks.step && shard_->torn_step_ == 0;
}

// This server was started again between the fence and the switch, or had no room for its copy.
absl::Status SlotMover::TakeSlotsFromLog(const SlotSet& gained) {
  LOG_WARN("slots {} are taken from the step log, where their move left them", FormatSlots(gained));
  return shard_->step_log_->ReadWaiting([&](const SlotsTaken& taken, const std::vector<LoggedImage>& images)
                                            ABSL_NO_THREAD_SAFETY_ANALYSIS { return shard_->TakeLogged(taken, images, gained); });
}

absl::Status SlotMover::TakeSlots(Incoming* incoming) {
  for (auto& [id, image] : incoming->blocks) RETURN_IF_ERROR(shard_->InstallImage(std::move(image)));
  const SlotSourceState& source = incoming->source;
  shard_->slots_since_ = source.head_step;
  if (Listed()) return absl::OkStatus();
  const absl::Status kept = shard_->KeepFences(source.run_epochs);
  if (!kept.ok()) LOG_ERROR("the fences of the runs are not durable here: {}", kept.ToString());
  absl::MutexLock lock(&shard_->run_mu_);
  shard_->head_step_ = source.head_step;
  shard_->run_ = source.run;
  shard_->run_active_ = source.run_active;
  shard_->next_step_.assign(source.run.world_size, source.head_step + 1);
  shard_->members_.assign(source.run.world_size, "");
  shard_->DropPending();
  return absl::OkStatus();
}

absl::Status SlotMover::GoBackToLastCheckpoint(const SlotMap& map) {
  const std::optional<Cut> cut = shard_->checkpoints_->LastCommitted();
  LOG_WARN("slots are taken over without a finished copy: this server goes back to {}, as after a crash",
           cut.has_value() ? "checkpoint " + cut->id : "an untouched bank");
  return shard_->GiveUpStepsSince(cut, map);
}

// --- New owner -----------------------------------------------------------------------------------------------------------------------------

absl::StatusOr<uint64_t> SlotMover::BeginRound(const std::string& move_id, const SlotSet& slots, const SlotSourceState& source) {
  if ((shard_->ownership_.slots() & slots).any())
    return FailedPrecondition("server \"{}\" has slots {} already", shard_->server_id(), FormatSlots(shard_->ownership_.slots() & slots));
  std::unique_ptr<Incoming> forgotten;
  {
    absl::MutexLock train(&shard_->train_mu_);
    RETURN_IF_ERROR(CheckMovable());
  }
  if (!Listed()) {  // what it once had belongs to others by now
    absl::MutexLock cut_lock(&shard_->cut_mu_);
    for (const Cut& cut : shard_->checkpoints_->List()) {
      const bool known = std::any_of(source.cuts.begin(), source.cuts.end(),
                                     [&](const MergeSource& other) { return other.checkpoint_id == cut.id && other.marks == cut.marks; });
      if (!known) RETURN_IF_ERROR(shard_->checkpoints_->Delete(cut.id));
    }
  }
  {
    absl::MutexLock lock(&shard_->run_mu_);  // the slots of another move may be this server's any moment
    if (shard_->IsSealed() && shard_->seal_->move_id != move_id)
      return Aborted("server \"{}\" is sealed by the move {}; wait until it ends", shard_->server_id(), shard_->seal_->move_id);
  }
  absl::MutexLock lock(&mu_);
  if (incoming_ == nullptr || incoming_->move_id != move_id || incoming_->slots != slots || incoming_->generation != source.generation) {
    forgotten.swap(incoming_);
    incoming_ = std::make_unique<Incoming>();
    incoming_->move_id = move_id;
    incoming_->slots = slots;
    incoming_->generation = source.generation;
  }
  return incoming_->copied_step;
}

absl::Status SlotMover::Stage(const std::string& move_id, BlockId id, absl::Span<const uint8_t> weights, absl::Span<const uint8_t> state) {
  RETURN_IF_ERROR(shard_->CheckInSpec(id));
  absl::StatusOr<BlockImage> image = DecodeImage(shard_->spec(), id, weights, state, shard_->buffers_);
  if (!image.ok()) return Annotate(image.status(), fmt::format("on its way to server \"{}\"", shard_->server_id()));
  absl::MutexLock lock(&mu_);
  if (incoming_ == nullptr || incoming_->move_id != move_id) return Aborted("the move {} was given up", move_id);
  incoming_->blocks[id] = *std::move(image);
  return absl::OkStatus();
}

bool SlotMover::Holds(const MergeSource& source, const SlotSet& slots) const {
  if (!source.version.empty()) {
    const absl::StatusOr<CheckpointStore::Version> version = shard_->checkpoints_->FindVersion(source.version);
    return version.ok() && version->payload == source.payload && (slots & ~version->held.slots).none();
  }
  const absl::StatusOr<Cut> cut = shard_->checkpoints_->Find(source.checkpoint_id);
  return cut.ok() && cut->marks == source.marks && (slots & ~cut->held.slots).none();
}

absl::StatusOr<std::unique_ptr<CutMerge>> SlotMover::BeginMerge(const MergeSource& source, const SlotSet& slots, const std::string& base) {
  const bool here = source.version.empty() ? shard_->checkpoints_->Find(source.checkpoint_id).ok()
                                           : shard_->checkpoints_->FindVersion(source.version).ok();
  if (!here && Listed()) return nullptr;
  absl::StatusOr<std::unique_ptr<CutMerge>> merge =
      CutMerge::Begin(shard_->checkpoints_.get(), source, slots, shard_->slot_map()->epoch(), base);
  if (merge.ok() || !here || !source.version.empty()) return merge;
  return UnlessRemoved(source.checkpoint_id, merge.status());
}

absl::Status SlotMover::Install(CutMerge* merge) {
  absl::MutexLock cut(&shard_->cut_mu_);
  return shard_->checkpoints_->Install(merge);
}

absl::Status SlotMover::CommitAs(const SlotSourceState& source) {
  if (Listed()) return absl::OkStatus();
  std::vector<MergeSource> committed = source.cuts;
  std::erase_if(committed, [](const MergeSource& cut) { return cut.committed == 0; });
  std::sort(committed.begin(), committed.end(), [](const MergeSource& a, const MergeSource& b) { return a.committed < b.committed; });
  absl::MutexLock cut_lock(&shard_->cut_mu_);
  for (const MergeSource& cut : committed) {
    const absl::StatusOr<Cut> here = shard_->checkpoints_->Find(cut.checkpoint_id);
    if (!here.ok()) continue;  // gone at the source while it was copied
    const bool newest = cut.checkpoint_id == committed.back().checkpoint_id;
    if (here->committed == 0 || (newest && shard_->checkpoints_->LastCommitted()->id != cut.checkpoint_id))
      RETURN_IF_ERROR(shard_->checkpoints_->Commit(cut.checkpoint_id));
  }
  return absl::OkStatus();
}

absl::Status SlotMover::EndRound(const std::string& move_id, const SlotSet& slots, const SlotSourceState& source, bool last) {
  if (last) {
    if (source.sealed_by != move_id) return Aborted("the old owner is not sealed by the move {} any more", move_id);
    const std::vector<Cut> cuts = shard_->checkpoints_->List();
    const auto in_source = [&](const Cut& cut) {
      return std::any_of(source.cuts.begin(), source.cuts.end(), [&](const MergeSource& other) { return other.checkpoint_id == cut.id; });
    };
    if (!source.cuts.empty() && !Holds(source.cuts.back(), slots))
      return Aborted("checkpoint {} is on the old owner, but not on server \"{}\": one is being made or was given up", source.cuts.back().checkpoint_id,
                     shard_->server_id());
    if (!cuts.empty() && !in_source(cuts.back()))
      return Aborted("checkpoint {} is on server \"{}\", but not on the old owner: one is being made or was given up", cuts.back().id,
                     shard_->server_id());
  }
  if (last) {
    absl::MutexLock train(&shard_->train_mu_);  // no step comes between
    RETURN_IF_ERROR(CheckAtOneStep(source));
    if (shard_->options_.durability == Durability::kStep) RETURN_IF_ERROR(LogTaken(move_id, source));
  }
  MEMBANK_FAIL_POINT("slots.taken");
  absl::MutexLock lock(&mu_);
  if (incoming_ == nullptr || incoming_->move_id != move_id) return Aborted("the move {} was given up", move_id);
  incoming_->copied_step = source.head_step;
  incoming_->source = source;
  incoming_->complete = last;
  return absl::OkStatus();
}

// Class step: what came is on disk before the slot map can name this server. Of a fence that was lifted meanwhile nothing is kept.
absl::Status SlotMover::LogTaken(const std::string& move_id, const SlotSourceState& source) {
  absl::MutexLock lock(&mu_);
  if (incoming_ == nullptr || incoming_->move_id != move_id) return Aborted("the move {} was given up", move_id);
  uint64_t bytes = 0;
  for (const auto& [id, image] : incoming_->blocks) bytes += image.bytes();
  RETURN_IF_ERROR(shard_->CheckFreeSpace(bytes));
  StepLog& log = *shard_->step_log_;
  if (!Listed()) RETURN_IF_ERROR(shard_->LogRestore(shard_->checkpoints_->LastCommitted(), SlotSet()));  // its own steps of long ago
  for (const auto& [id, image] : incoming_->blocks) RETURN_IF_ERROR(log.WriteImage(image));
  return log.WriteTaken({{source.head_step, source.run.run_id, source.run.epoch}, incoming_->slots, !Listed(), source.run_epochs});
}

}  // namespace membank
