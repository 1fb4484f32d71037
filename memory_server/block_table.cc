// Reading, updating, evicting and installing. block_write_back.cc has what goes to disk.
#include "memory_server/block_table.h"

#include <algorithm>

#include "absl/container/flat_hash_set.h"
#include "absl/time/clock.h"
#include "common/base/metrics.h"
#include "common/base/status_macros.h"

namespace membank {
namespace {

constexpr int kPrefetchThreads = 2;
constexpr uint64_t kMaxPrefetches = 65536;
constexpr absl::Duration kLookAgain = absl::Milliseconds(100);

void CountDiskRead(const char* part, uint64_t bytes) {
  GetCounter("membank_memory_disk_reads_total", "Parts of touched blocks read back from the head stores", {{"part", part}}).Increment();
  static prometheus::Counter& total = GetCounter("membank_memory_disk_read_bytes_total", "Bytes of touched blocks read back from the head stores");
  total.Increment(static_cast<double>(bytes));
}

}  // namespace

BlockTable::BlockTable(const BankSpec& spec, std::shared_ptr<BufferPool> buffers, Options options)
    : spec_(spec), buffers_(std::move(buffers)), options_(std::move(options)) {
  if (options_.memory_budget_bytes == 0) return;
  prefetchers_ = std::make_unique<ThreadPool>(kPrefetchThreads);
  writer_ = std::thread([this] { RunWriter(); });
}

BlockTable::~BlockTable() {
  Shutdown();
  if (writer_.joinable()) writer_.join();
  prefetchers_.reset();
}

uint64_t BlockTable::MinimumBudget(const BankSpec& spec) {
  uint64_t largest = 0;
  for (uint32_t level = 1; level <= spec.depth(); ++level)
    largest = std::max(largest, 2 * spec.BlockBytes(level) + 3 * sizeof(float) * spec.BlockElements(level));
  return largest;
}

void BlockTable::Shutdown() {
  absl::MutexLock lock(&mu_);
  stopping_ = true;
  changed_.SignalAll();
}

BlockTable::Stats BlockTable::GetStats() const {
  absl::ReaderMutexLock lock(&mu_);
  return {entries_.size(), resident_bytes_ + reserved_bytes_, dirty_bytes_, spilled_blocks_, disk_reads_};
}

void BlockTable::ReportGauges() const {
  static prometheus::Gauge& resident = GetGauge("membank_memory_table_resident_bytes", "Payloads and optimizer state of touched blocks in RAM");
  static prometheus::Gauge& dirty = GetGauge("membank_memory_table_dirty_bytes", "Of them, bytes that are not in the head stores yet");
  resident.Set(static_cast<double>(resident_bytes_ + reserved_bytes_));
  dirty.Set(static_cast<double>(dirty_bytes_));
}

BlockTable::Entry* BlockTable::Find(BlockId id) const {
  const auto it = entries_.find(id);
  return it == entries_.end() ? nullptr : it->second.get();
}

// --- Reading -----------------------------------------------------------------------------------------------------------------------------

uint64_t BlockTable::VersionOf(BlockId id) const {
  absl::ReaderMutexLock lock(&mu_);
  const Entry* const entry = Find(id);
  return entry == nullptr ? 0 : entry->version;
}

uint64_t BlockTable::StateBytesOf(BlockId id) const {
  absl::ReaderMutexLock lock(&mu_);
  const Entry* const entry = Find(id);
  return entry == nullptr ? 0 : entry->state_bytes;
}

std::optional<CachedPayload> BlockTable::ReadResident(BlockId id) const {
  absl::ReaderMutexLock lock(&mu_);
  const Entry* const entry = Find(id);
  if (entry == nullptr || entry->version == 0 || entry->payload == nullptr) return std::nullopt;
  entry->used.store(true, std::memory_order_relaxed);
  return CachedPayload{entry->version, entry->crc32c, entry->payload};
}

absl::StatusOr<CachedPayload> BlockTable::Read(BlockId id) {
  {
    absl::ReaderMutexLock lock(&mu_);
    const Entry* const entry = Find(id);
    if (entry == nullptr || entry->version == 0) return CachedPayload();
    entry->used.store(true, std::memory_order_relaxed);
    if (entry->payload != nullptr) return CachedPayload{entry->version, entry->crc32c, entry->payload};
  }
  return LoadPayload(id);
}

absl::StatusOr<CachedPayload> BlockTable::LoadPayload(BlockId id) {
  while (true) {
    uint64_t version = 0, generation = 0;
    LiveStores stores;
    {
      absl::MutexLock lock(&mu_);
      Entry* const entry = Find(id);
      if (entry == nullptr || entry->version == 0) return CachedPayload();
      if (entry->payload != nullptr) return CachedPayload{entry->version, entry->crc32c, entry->payload};
      if (entry->loading) {
        changed_.Wait(&mu_);
        continue;
      }
      entry->loading = true;
      version = entry->version;
      generation = generation_;
      stores = stores_;
    }
    absl::StatusOr<CachedPayload> loaded = ReadPayload(*stores, spec_, id, buffers_.get());
    Dropped dropped;
    absl::MutexLock lock(&mu_);
    if (generation != generation_) continue;
    Entry* const entry = Find(id);
    entry->loading = false;
    changed_.SignalAll();
    if (entry->version != version) continue;  // replaced meanwhile, perhaps in the stores, too: what was read may be either
    RETURN_IF_ERROR(loaded.status());
    if (loaded->version != version || loaded->crc32c != entry->crc32c)
      return DataLoss("payload of block {} is at step {} in the head store, must be at step {}", ToString(id), loaded->version, version);
    ++disk_reads_;
    CountDiskRead("payload", entry->payload_bytes);
    if (entry->payload == nullptr && MakeRoom(entry->payload_bytes, /*spare_announced=*/true, &dropped)) {
      entry->payload = loaded->payload;
      resident_bytes_ += entry->payload_bytes;
    }
    return loaded;
  }
}

void BlockTable::Prefetch(absl::Span<const BlockId> ids) {
  if (options_.memory_budget_bytes == 0) return;
  std::vector<BlockId> missing;
  {
    absl::MutexLock lock(&mu_);
    for (const BlockId id : ids) {
      Entry* const entry = Find(id);
      if (entry == nullptr) continue;
      entry->announced = true;
      entry->used.store(true, std::memory_order_relaxed);
      if (entry->resident_bytes() == entry->bytes() || prefetches_queued_ == kMaxPrefetches) continue;
      ++prefetches_queued_;
      missing.push_back(id);
    }
  }
  for (const BlockId id : missing) prefetchers_->Schedule([this, id] { Bring(id); });
}

void BlockTable::Bring(BlockId id) {
  uint64_t version = 0, generation = 0, bytes = 0;
  bool wants_payload = false, wants_state = false;
  LiveStores stores;
  Dropped dropped;
  {
    absl::MutexLock lock(&mu_);
    --prefetches_queued_;
    Entry* const entry = Find(id);
    if (stopping_ || entry == nullptr || entry->version == 0 || entry->loading || entry->updating) return;
    wants_payload = entry->payload == nullptr;
    wants_state = entry->state == nullptr;
    bytes = entry->bytes() - entry->resident_bytes();
    if (bytes == 0 || !MakeRoom(bytes, /*spare_announced=*/true, &dropped)) return;
    reserved_bytes_ += bytes;
    entry->loading = true;
    version = entry->version;
    generation = generation_;
    stores = stores_;
  }
  dropped.clear();
  absl::StatusOr<CachedPayload> payload = CachedPayload();
  absl::StatusOr<std::shared_ptr<TrainState>> state = std::shared_ptr<TrainState>();
  if (wants_payload) payload = ReadPayload(*stores, spec_, id, buffers_.get());
  if (wants_state) state = ReadState(*stores, spec_, id, version, buffers_);
  absl::MutexLock lock(&mu_);
  reserved_bytes_ -= bytes;
  if (generation != generation_) return;
  Entry* const entry = Find(id);
  entry->loading = false;
  changed_.SignalAll();
  if (entry->version != version) return;
  if (wants_payload && payload.ok() && payload->version == version && entry->payload == nullptr) {  // an error is for who needs the block
    entry->payload = payload->payload;
    resident_bytes_ += entry->payload_bytes;
    ++disk_reads_;
    CountDiskRead("payload", entry->payload_bytes);
  }
  static prometheus::Counter& brought = GetCounter("membank_memory_prefetched_blocks_total", "Announced blocks read from disk ahead of their use");
  brought.Increment();
  if (wants_state && state.ok() && entry->state == nullptr) {
    entry->state = *std::move(state);
    resident_bytes_ += entry->state_bytes;
    ++disk_reads_;
    CountDiskRead("state", entry->state_bytes);
  }
}

// --- Room --------------------------------------------------------------------------------------------------------------------------------

// The clock: clean blocks go, those that were used since the hand passed get a second turn.
bool BlockTable::MakeRoom(uint64_t bytes, bool spare_announced, Dropped* dropped) {
  if (options_.memory_budget_bytes == 0) return true;
  const auto fits = [&]() ABSL_SHARED_LOCKS_REQUIRED(mu_) {
    return resident_bytes_ + reserved_bytes_ + bytes <= options_.memory_budget_bytes;
  };
  for (size_t i = 0; i < 2 * clock_.size() && !fits(); ++i) {
    Entry* const entry = clock_[hand_];
    hand_ = (hand_ + 1) % clock_.size();
    if (entry->updating || entry->dirty() || entry->resident_bytes() == 0 || (spare_announced && entry->announced)) continue;
    if (entry->used.exchange(false, std::memory_order_relaxed)) continue;
    resident_bytes_ -= entry->resident_bytes();
    entry->announced = false;
    dropped->push_back(std::move(entry->payload));
    dropped->push_back(std::move(entry->state));
  }
  return fits();
}

// --- Updating ----------------------------------------------------------------------------------------------------------------------------

absl::StatusOr<BlockTable::Update> BlockTable::BeginUpdate(BlockId id, uint64_t state_bytes, bool needs_payload) {
  ASSIGN_OR_RETURN(Update update, ClaimForUpdate(id, state_bytes, needs_payload));
  const absl::Status status = CompleteUpdate(&update, needs_payload);
  if (status.ok()) return update;
  AbandonUpdate(update);
  return status;
}

// Beside what the block already has in RAM. State that an image holds is copied, not changed.
uint64_t BlockTable::NeededForUpdate(BlockId id, const Entry* entry, uint64_t state_bytes, bool needs_payload) const {
  uint64_t needed = spec_.BlockBytes(id.level) + state_bytes;
  if (entry == nullptr) return needed;
  if (needs_payload && entry->version > 0 && entry->payload == nullptr) needed += entry->payload_bytes;
  const bool in_place = entry->state != nullptr && entry->state.use_count() == 1;
  return in_place ? needed - std::min(state_bytes, entry->state_bytes) : needed + entry->state_bytes - std::min(state_bytes, entry->state_bytes);
}

absl::StatusOr<BlockTable::Update> BlockTable::ClaimForUpdate(BlockId id, uint64_t state_bytes, bool needs_payload) {
  const absl::Time give_up = absl::Now() + options_.room_timeout;
  while (true) {
    Dropped dropped;  // freed in every round
    absl::MutexLock lock(&mu_);
    if (stopping_) return absl::UnavailableError("the server is shutting down");
    Entry* entry = Find(id);
    if (entry == nullptr || !entry->loading) {
      const uint64_t needed = NeededForUpdate(id, entry, state_bytes, needs_payload);
      if (entry != nullptr) entry->updating = true;  // not evicted for itself
      if (MakeRoom(needed, /*spare_announced=*/false, &dropped)) {
        if (entry == nullptr) {
          std::unique_ptr<Entry>& created = entries_[id];
          created = std::make_unique<Entry>();
          entry = created.get();
          entry->id = id;
          entry->updating = true;
          clock_.push_back(entry);
        }
        reserved_bytes_ += needed;
        return Update{id, entry->version, needs_payload ? entry->payload : nullptr, entry->state, needed};
      }
      if (entry != nullptr) entry->updating = false;
    }
    if (!write_error_.ok() && absl::Now() >= give_up)
      return Annotate(write_error_, fmt::format("no room for block {} within the memory budget of {} bytes: {} bytes are dirty and cannot be written",
                                                ToString(id), options_.memory_budget_bytes, dirty_bytes_));
    ++waiting_for_room_;
    changed_.SignalAll();
    changed_.WaitWithTimeout(&mu_, kLookAgain);
    --waiting_for_room_;
  }
}

// Reads or copies what the update needs; nobody else changes the block meanwhile.
absl::Status BlockTable::CompleteUpdate(Update* update, bool needs_payload) const {
  if (update->version == 0) {
    update->state = std::make_shared<TrainState>(buffers_);
    return absl::OkStatus();
  }
  LiveStores stores;
  bool shared = false;
  {
    absl::ReaderMutexLock lock(&mu_);
    stores = stores_;
    shared = update->state != nullptr && update->state.use_count() > 2;  // beside the table's and this one: an image's
  }
  if (update->state == nullptr) {
    ASSIGN_OR_RETURN(update->state, ReadState(*stores, spec_, update->id, update->version, buffers_));
    CountDiskRead("state", update->state->bytes());
  } else if (shared) {
    update->state = update->state->Clone();
  }
  if (needs_payload && update->payload == nullptr) {
    ASSIGN_OR_RETURN(const CachedPayload payload, ReadPayload(*stores, spec_, update->id, buffers_.get()));
    if (payload.version != update->version)
      return DataLoss("payload of block {} is at step {} in the head store, must be at step {}", ToString(update->id), payload.version,
                      update->version);
    update->payload = payload.payload;
    CountDiskRead("payload", payload.payload->size());
  }
  return absl::OkStatus();
}

void BlockTable::AbandonUpdate(const Update& update) {
  absl::MutexLock lock(&mu_);
  Find(update.id)->updating = false;
  reserved_bytes_ -= update.reserved_bytes;
  changed_.SignalAll();
}

void BlockTable::FinishUpdate(Update update, uint64_t version, uint32_t crc32c, SharedBuffer payload) {
  Dropped dropped;
  absl::MutexLock lock(&mu_);  // readers wait for this swap only
  Entry* const entry = Find(update.id);
  if (entry->dirty()) dirty_bytes_ -= entry->bytes();
  resident_bytes_ -= entry->resident_bytes();
  reserved_bytes_ -= update.reserved_bytes;
  dropped.push_back(std::move(entry->payload));
  if (entry->state != update.state) dropped.push_back(std::move(entry->state));
  entry->payload = std::move(payload);
  entry->state = std::move(update.state);
  entry->payload_bytes = entry->payload->size();
  entry->state_bytes = entry->state->bytes();
  entry->version = version;
  entry->crc32c = crc32c;
  entry->updating = entry->announced = false;
  entry->used.store(true, std::memory_order_relaxed);
  resident_bytes_ += entry->bytes();
  dirty_bytes_ += entry->bytes();
  changed_.SignalAll();
  ReportGauges();
}

// --- Blocks that come and go as a whole --------------------------------------------------------------------------------------------------

std::vector<BlockTable::Listed> BlockTable::List() const {
  std::vector<Listed> listed;
  absl::ReaderMutexLock lock(&mu_);
  for (const Entry* const entry : clock_)
    if (entry->version > 0) listed.push_back({entry->id, entry->version, entry->payload_bytes});
  return listed;
}

absl::StatusOr<BlockImage> BlockTable::ReadImage(BlockId id) {
  ASSIGN_OR_RETURN(const CachedPayload payload, Read(id));
  if (payload.payload == nullptr) return NotFound("block {} is untouched", ToString(id));
  BlockImage image{id, payload.version, payload.crc32c, payload.payload};
  LiveStores stores;
  {
    absl::ReaderMutexLock lock(&mu_);
    image.state = Find(id)->state;
    stores = stores_;
  }
  if (image.state == nullptr) {
    ASSIGN_OR_RETURN(image.state, ReadState(*stores, spec_, id, image.version, buffers_));
  }
  return image;
}

void BlockTable::Erase(absl::Span<const BlockId> ids) {
  std::vector<std::unique_ptr<Entry>> erased;  // freed after the lock
  std::vector<BlockStore::Write> writes;
  LiveStores stores;
  {
    absl::MutexLock lock(&mu_);
    const auto busy = [&]() ABSL_SHARED_LOCKS_REQUIRED(mu_) {
      return writing_ || std::any_of(ids.begin(), ids.end(), [&](BlockId id) ABSL_SHARED_LOCKS_REQUIRED(mu_) {
               const Entry* const entry = Find(id);
               return entry != nullptr && entry->loading;
             });
    };
    while (busy()) changed_.Wait(&mu_);
    writing_ = true;
    absl::flat_hash_set<const Entry*> gone;
    for (const BlockId id : ids) {
      const auto it = entries_.find(id);
      if (it == entries_.end()) continue;
      resident_bytes_ -= it->second->resident_bytes();
      if (it->second->dirty()) dirty_bytes_ -= it->second->bytes();
      writes.push_back({BlockKey(id), {}, true});
      gone.insert(it->second.get());
      erased.push_back(std::move(it->second));
      entries_.erase(it);
    }
    std::erase_if(clock_, [&](const Entry* entry) { return gone.contains(entry); });
    hand_ = 0;
    stores = stores_;
    changed_.SignalAll();
  }
  absl::Status status;
  if (stores != nullptr) status = stores->weights->Apply(writes);
  if (stores != nullptr && status.ok()) status = stores->state->Apply(writes);
  absl::MutexLock lock(&mu_);
  if (!status.ok()) stores_failed_ = true;  // replaced before the next write: what is not in the table is not copied over
  writing_ = false;
  changed_.SignalAll();
  ReportGauges();
}

// --- Replacing everything ----------------------------------------------------------------------------------------------------------------

void BlockTable::Install(Contents contents, LiveStores stores) {
  absl::flat_hash_map<BlockId, std::unique_ptr<Entry>> entries;  // new, then old: freed after the lock
  std::vector<Entry*> clock;
  uint64_t resident = 0;
  for (auto& [id, loaded] : contents) {
    auto entry = std::make_unique<Entry>();
    entry->id = id;
    entry->version = entry->written_version = loaded.version;
    entry->crc32c = loaded.crc32c;
    entry->payload_bytes = loaded.payload_bytes;
    entry->state_bytes = loaded.state_bytes;
    entry->payload = std::move(loaded.payload);
    entry->state = std::move(loaded.state);
    resident += entry->resident_bytes();
    clock.push_back(entry.get());
    entries[id] = std::move(entry);
  }
  absl::MutexLock lock(&mu_);
  while (writing_) changed_.Wait(&mu_);
  std::swap(entries_, entries);
  std::swap(stores_, stores);
  clock_ = std::move(clock);
  hand_ = 0;
  ++generation_;
  stores_failed_ = false;
  write_error_ = absl::OkStatus();
  resident_bytes_ = resident;
  dirty_bytes_ = 0;
  changed_.SignalAll();
  ReportGauges();
}

}  // namespace membank
