// What a block table writes: its own thread makes dirty blocks durable so that they can go, cuts bring the stores up to date. The stores have
// one writer at a time (writing_). A store that failed is read on, but replaced before the next write: what lies only there is copied over.
#include <algorithm>

#include "absl/time/clock.h"
#include "common/base/log.h"
#include "common/base/malloc_tuning.h"
#include "common/base/metrics.h"
#include "common/base/status_macros.h"
#include "memory_server/block_table.h"

namespace membank {
namespace {

constexpr uint64_t kWriteBytes = 64 << 20;                   // of one write: what a cut may have to wait for
constexpr absl::Duration kRetryWrite = absl::Seconds(1);

}  // namespace

// --- The writer --------------------------------------------------------------------------------------------------------------------------

// Half of the budget may be dirty: the other half is there for reads and can go at once.
bool BlockTable::WriteIsDue() const {
  return dirty_bytes_ > options_.memory_budget_bytes / 2 || (waiting_for_room_ > 0 && dirty_bytes_ > 0);
}

void BlockTable::RunWriter() {
  while (true) {
    std::vector<BlockImage> images;
    {
      absl::MutexLock lock(&mu_);
      while (!stopping_ && images.empty()) {
        if (!writing_ && WriteIsDue()) images = PickDirty();
        if (images.empty()) changed_.Wait(&mu_);
      }
      if (stopping_) return;
      writing_ = true;
    }
    const absl::Status status = WriteBack(images);
    KeepFreeMemoryBelow(options_.memory_budget_bytes / 16);
    absl::MutexLock lock(&mu_);
    if (status.ok()) {
      SettleWrite(images);
      spilled_blocks_ += images.size();
    }
    ReleaseImages(&images);
    writing_ = false;
    if (!status.ok() && write_error_.ok()) LOG_ERROR("spilling stopped, dirty blocks stay in RAM: {}", status.ToString());
    if (status.ok() && !write_error_.ok()) LOG_INFO("spilling goes on");
    write_error_ = status;
    changed_.SignalAll();
    const absl::Time again = absl::Now() + kRetryWrite;
    while (!status.ok() && !stopping_ && absl::Now() < again) changed_.WaitWithDeadline(&mu_, again);
  }
}

// From the clock's hand on: first what was not used lately.
std::vector<BlockImage> BlockTable::PickDirty() const {
  std::vector<BlockImage> images;
  uint64_t bytes = 0;
  for (const bool used : {false, true}) {
    for (size_t i = 0; i < clock_.size() && bytes < kWriteBytes; ++i) {
      const Entry& entry = *clock_[(hand_ + i) % clock_.size()];
      if (!entry.dirty() || entry.updating || entry.used.load(std::memory_order_relaxed) != used) continue;
      images.push_back({entry.id, entry.version, entry.crc32c, entry.payload, entry.state});
      bytes += entry.bytes();
    }
  }
  return images;
}

absl::Status BlockTable::WriteBack(absl::Span<const BlockImage> images) {
  uint64_t bytes = 0;
  for (const BlockImage& image : images) bytes += image.bytes();
  RETURN_IF_ERROR(options_.check_free_space(bytes));
  ASSIGN_OR_RETURN(const LiveStores stores, WritableStores());
  RETURN_IF_ERROR(WriteToStores(*stores, [&](const HeadStores& to) { return WriteImages(to, images); }));
  static prometheus::Counter& spilled = GetCounter("membank_memory_spilled_blocks_total", "Dirty blocks written to make room");
  static prometheus::Counter& written = GetCounter("membank_memory_spilled_bytes_total", "Bytes of dirty blocks written to make room");
  spilled.Increment(static_cast<double>(images.size()));
  written.Increment(static_cast<double>(bytes));
  return absl::OkStatus();
}

// An engine is not trusted after a failed write (promise P5), unless the disk was full and it said so.
absl::Status BlockTable::WriteToStores(const HeadStores& stores, const std::function<absl::Status(const HeadStores&)>& write) {
  const absl::Status status = write(stores);
  if (status.ok() || absl::IsResourceExhausted(status)) return status;
  absl::MutexLock lock(&mu_);
  stores_failed_ = true;
  return status;
}

// Only for who holds writing_.
absl::StatusOr<BlockTable::LiveStores> BlockTable::WritableStores() {
  LiveStores failed;
  {
    absl::MutexLock lock(&mu_);
    if (!stores_failed_) return stores_;
    failed = stores_;
    for (Entry* const entry : clock_) {  // what is whole in RAM is written anew, as dirty
      if (entry->dirty() || entry->resident_bytes() < entry->bytes()) continue;
      entry->written_version = 0;
      dirty_bytes_ += entry->bytes();
    }
  }
  ASSIGN_OR_RETURN(LiveStores fresh, options_.open_stores());
  RETURN_IF_ERROR(CopySpilled(*failed, *fresh));
  absl::MutexLock lock(&mu_);
  stores_ = fresh;
  stores_failed_ = false;
  return fresh;
}

absl::Status BlockTable::CopySpilled(const HeadStores& from, const HeadStores& to) {
  std::vector<BlockId> ids;
  uint64_t bytes = 0;
  {
    absl::MutexLock lock(&mu_);
    for (const Entry* const entry : clock_) {
      if (entry->dirty() || entry->version == 0) continue;
      ids.push_back(entry->id);
      bytes += entry->bytes();
    }
  }
  RETURN_IF_ERROR(options_.check_free_space(bytes));
  for (const BlockId id : ids) {
    for (const auto& [source, into] : {std::pair(from.weights.get(), to.weights.get()), std::pair(from.state.get(), to.state.get())}) {
      absl::Status put;
      RETURN_IF_ERROR(source->Get(BlockKey(id), [&, target = into](absl::Span<const uint8_t> value) { put = target->Put(BlockKey(id), value); }));
      RETURN_IF_ERROR(put);
    }
  }
  return absl::OkStatus();
}

void BlockTable::SettleWrite(const std::vector<BlockImage>& images) {
  for (const BlockImage& image : images) {
    Entry* const entry = Find(image.id);
    if (entry->version != image.version || !entry->dirty()) continue;  // a step was faster
    entry->written_version = image.version;
    dirty_bytes_ -= entry->bytes();
  }
  ReportGauges();
}

// Under the lock, so that the next update sees that the state is its own.
void BlockTable::ReleaseImages(std::vector<BlockImage>* images) {
  for (BlockImage& image : *images) {
    const Entry* const entry = Find(image.id);
    if (entry != nullptr && entry->state == image.state) image.state.reset();
  }
}

// --- Cuts --------------------------------------------------------------------------------------------------------------------------------

absl::StatusOr<std::unique_ptr<BlockTable::Cut>> BlockTable::BeginCut() {
  {
    absl::MutexLock lock(&mu_);
    while (writing_) changed_.Wait(&mu_);
    writing_ = true;
  }
  std::unique_ptr<Cut> cut(new Cut(this));
  RETURN_IF_ERROR(WritableStores().status());
  absl::ReaderMutexLock lock(&mu_);
  std::vector<const Entry*> entries;
  for (const Entry* const entry : clock_)
    if (entry->version > 0) entries.push_back(entry);
  std::sort(entries.begin(), entries.end(), [](const Entry* a, const Entry* b) { return a->id < b->id; });
  for (const Entry* const entry : entries) {
    cut->digest_.Add(entry->id, entry->version, entry->crc32c);
    if (!entry->dirty()) continue;
    cut->dirty_.push_back({entry->id, entry->version, entry->crc32c, entry->payload, entry->state});
    cut->dirty_bytes_ += entry->bytes();
  }
  return cut;
}

absl::Status BlockTable::Cut::Write(const std::function<absl::Status(const HeadStores&)>& take) {
  LiveStores stores;
  {
    absl::MutexLock lock(&table_->mu_);
    stores = table_->stores_;
  }
  RETURN_IF_ERROR(table_->WriteToStores(*stores, [&](const HeadStores& to) { return WriteImages(to, dirty_); }));
  {
    absl::MutexLock lock(&table_->mu_);
    table_->SettleWrite(dirty_);
  }
  return table_->WriteToStores(*stores, take);
}

BlockTable::Cut::~Cut() {
  absl::MutexLock lock(&table_->mu_);
  table_->ReleaseImages(&dirty_);
  table_->writing_ = false;
  table_->changed_.SignalAll();
}

// --- Purging -----------------------------------------------------------------------------------------------------------------------------

absl::StatusOr<uint64_t> BlockTable::Purge(const std::function<bool(BlockId)>& covered,
                                           const std::function<absl::Status(const HeadStores&)>& erase) {
  Dropped dropped;
  uint64_t purged = 0;
  {
    absl::MutexLock lock(&mu_);
    const auto loading = [&](const Entry* entry) { return entry->loading && covered(entry->id); };
    while (writing_ || std::any_of(clock_.begin(), clock_.end(), loading)) changed_.Wait(&mu_);
    writing_ = true;
    for (Entry* const entry : clock_) {
      if (!covered(entry->id)) continue;
      if (entry->dirty()) dirty_bytes_ -= entry->bytes();
      if (entry->version > 0) ++purged;
      resident_bytes_ -= entry->resident_bytes();
      dropped.push_back(std::move(entry->payload));
      dropped.push_back(std::move(entry->state));
    }
    std::erase_if(clock_, [&](const Entry* entry) { return covered(entry->id); });
    absl::erase_if(entries_, [&](const auto& entry) { return covered(entry.first); });
    hand_ = 0;
  }
  dropped.clear();
  const absl::StatusOr<LiveStores> stores = WritableStores();
  const absl::Status erased = stores.ok() ? erase(**stores) : stores.status();
  absl::MutexLock lock(&mu_);
  if (!erased.ok()) stores_failed_ = true;  // they may hold blocks that the table does not have
  writing_ = false;
  changed_.SignalAll();
  ReportGauges();
  RETURN_IF_ERROR(erased);
  return purged;
}

}  // namespace membank
