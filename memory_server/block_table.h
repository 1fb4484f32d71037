// The touched blocks of a shard's live head: in RAM, on disk, or both. The table owns the head stores below it and the thread that writes
// into them. Within a memory budget it keeps in RAM what was used or announced last (clock); what is dirty, newer than in the stores, stays
// in RAM, and readable, until it is durable there. Without a budget everything stays in RAM and only cuts write.
//
// Threads: Read, VersionOf, Prefetch and GetStats from any thread; they never wait for a step, a cut or room, at most for a disk read.
// Updates of different blocks run side by side. The caller (Shard::train_mu_) excludes updates while a cut begins and during Install and Purge.
// An update waits for room: the writer makes dirty blocks durable and clean ones go. With a full disk it waits kRoomTimeout, then fails with
// what the disk said and has changed nothing; whoever comes back later finds the table working.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <optional>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "common/bank/bank_spec.h"
#include "common/base/thread_pool.h"
#include "memory_server/block_image.h"
#include "memory_server/checkpoint.h"

namespace membank {

class BlockTable {
 public:
  using LiveStores = std::shared_ptr<HeadStores>;

  struct Options {
    uint64_t memory_budget_bytes = 0;                          // payloads and optimizer state in RAM; 0: no bound
    std::function<absl::Status(uint64_t)> check_free_space;    // may so many bytes be written?
    std::function<absl::StatusOr<LiveStores>()> open_stores;   // empty ones, for when the ones in use failed
    absl::Duration room_timeout = absl::Seconds(60);           // how long an update waits for room while the disk refuses writes
  };

  struct Stats {
    uint64_t blocks = 0;
    uint64_t resident_bytes = 0;   // payloads and optimizer state in RAM, room reserved for updates included
    uint64_t dirty_bytes = 0;      // of them, not in the stores yet
    uint64_t spilled_blocks = 0;   // written to make room, since the start
    uint64_t disk_reads = 0;       // payloads and states read back, since the start
  };

  // A block being updated; nobody else changes, writes or evicts it until FinishUpdate.
  struct Update {
    BlockId id;
    uint64_t version = 0;               // before; 0: untouched, and nothing below is set
    SharedBuffer payload;               // before; only when it was asked for
    std::shared_ptr<TrainState> state;  // before; to be changed in place, at most to the size that was announced
    uint64_t reserved_bytes = 0;
  };

  // A block as a cut holds it, for Install: the parts that are null stay on disk.
  struct Loaded {
    uint64_t version = 0;
    uint32_t crc32c = 0;
    uint64_t payload_bytes = 0, state_bytes = 0;
    SharedBuffer payload;
    std::shared_ptr<TrainState> state;
  };
  using Contents = absl::flat_hash_map<BlockId, Loaded>;

  // A cut on its way: all blocks as they were when it began. While it exists nothing else is written into the stores.
  class Cut {
   public:
    ~Cut();
    Cut(const Cut&) = delete;
    Cut& operator=(const Cut&) = delete;

    const CutDigest& digest() const { return digest_; }                  // of all touched blocks
    const std::vector<BlockImage>& dirty() const { return dirty_; }      // ascending; what the stores lack
    uint64_t dirty_bytes() const { return dirty_bytes_; }
    // Brings the stores to the state of the cut and hands them to `take`, which links them into a checkpoint.
    absl::Status Write(const std::function<absl::Status(const HeadStores&)>& take);

   private:
    friend class BlockTable;
    explicit Cut(BlockTable* table) : table_(table) {}

    BlockTable* const table_;
    CutDigest digest_;
    std::vector<BlockImage> dirty_;
    uint64_t dirty_bytes_ = 0;
  };

  BlockTable(const BankSpec& spec, std::shared_ptr<BufferPool> buffers, Options options);
  ~BlockTable();
  BlockTable(const BlockTable&) = delete;
  BlockTable& operator=(const BlockTable&) = delete;

  // The smallest budget with which every block can be updated.
  static uint64_t MinimumBudget(const BankSpec& spec);

  // Wakes updates that wait for room with UNAVAILABLE; reads go on.
  void Shutdown() ABSL_LOCKS_EXCLUDED(mu_);

  uint64_t VersionOf(BlockId id) const ABSL_LOCKS_EXCLUDED(mu_);  // 0: untouched
  uint64_t StateBytesOf(BlockId id) const ABSL_LOCKS_EXCLUDED(mu_);
  // What is in RAM, at once; none when the block is untouched or on disk only.
  std::optional<CachedPayload> ReadResident(BlockId id) const ABSL_LOCKS_EXCLUDED(mu_);
  // No payload and version 0: untouched.
  absl::StatusOr<CachedPayload> Read(BlockId id) ABSL_LOCKS_EXCLUDED(mu_);
  // These blocks are needed soon: brings them into RAM on threads of its own, as far as there is room without waiting.
  void Prefetch(absl::Span<const BlockId> ids) ABSL_LOCKS_EXCLUDED(mu_);
  Stats GetStats() const ABSL_LOCKS_EXCLUDED(mu_);

  // `state_bytes`: size of the state after the update. Every success ends with FinishUpdate.
  absl::StatusOr<Update> BeginUpdate(BlockId id, uint64_t state_bytes, bool needs_payload) ABSL_LOCKS_EXCLUDED(mu_);
  // Makes the update visible: state as it is now, and a new payload.
  void FinishUpdate(Update update, uint64_t version, uint32_t crc32c, SharedBuffer payload) ABSL_LOCKS_EXCLUDED(mu_);

  // What is there, in no order.
  struct Listed {
    BlockId id;
    uint64_t version = 0, payload_bytes = 0;
  };
  std::vector<Listed> List() const ABSL_LOCKS_EXCLUDED(mu_);
  // A block whole, wherever it is; the caller excludes updates meanwhile. NOT_FOUND: untouched.
  absl::StatusOr<BlockImage> ReadImage(BlockId id) ABSL_LOCKS_EXCLUDED(mu_);
  // Forgets blocks, in the stores, too. The caller excludes updates and cuts.
  void Erase(absl::Span<const BlockId> ids) ABSL_LOCKS_EXCLUDED(mu_);

  // Waits for the write in flight. Fails when the stores cannot be written.
  absl::StatusOr<std::unique_ptr<Cut>> BeginCut() ABSL_LOCKS_EXCLUDED(mu_);
  // Replaces everything. `stores` holds at least the parts of `contents` that are not in RAM, in the versions given there.
  void Install(Contents contents, LiveStores stores) ABSL_LOCKS_EXCLUDED(mu_);
  // Makes the covered blocks untouched, in RAM and through `erase` in the stores, and returns how many were touched. Waits for the write in
  // flight. After an error they are untouched, but the stores may hold their bytes until the next write or purge.
  absl::StatusOr<uint64_t> Purge(const std::function<bool(BlockId)>& covered, const std::function<absl::Status(const HeadStores&)>& erase)
      ABSL_LOCKS_EXCLUDED(mu_);

 private:
  struct Entry {
    BlockId id;
    uint64_t version = 0;
    uint32_t crc32c = 0;
    uint64_t payload_bytes = 0, state_bytes = 0;  // whether they are in RAM or not
    SharedBuffer payload;                         // null: on disk only
    std::shared_ptr<TrainState> state;            // null: on disk only
    uint64_t written_version = 0;                 // the version in the stores, when it is the current one
    mutable std::atomic<bool> used{false};        // since the clock's hand passed; set under the reader lock, too
    bool announced = false;                       // prefetched and not updated since
    bool updating = false, loading = false;

    bool dirty() const { return version != written_version; }
    uint64_t resident_bytes() const { return (payload ? payload_bytes : 0) + (state ? state_bytes : 0); }
    uint64_t bytes() const { return payload_bytes + state_bytes; }
  };
  // What lock holders drop, freed after the lock.
  using Dropped = std::vector<std::shared_ptr<const void>>;

  Entry* Find(BlockId id) const ABSL_SHARED_LOCKS_REQUIRED(mu_);
  uint64_t NeededForUpdate(BlockId id, const Entry* entry, uint64_t state_bytes, bool needs_payload) const ABSL_SHARED_LOCKS_REQUIRED(mu_);
  bool MakeRoom(uint64_t bytes, bool spare_announced, Dropped* dropped) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  absl::StatusOr<Update> ClaimForUpdate(BlockId id, uint64_t state_bytes, bool needs_payload) ABSL_LOCKS_EXCLUDED(mu_);
  absl::Status CompleteUpdate(Update* update, bool needs_payload) const;
  void AbandonUpdate(const Update& update) ABSL_LOCKS_EXCLUDED(mu_);
  absl::StatusOr<CachedPayload> LoadPayload(BlockId id) ABSL_LOCKS_EXCLUDED(mu_);
  void Bring(BlockId id) ABSL_LOCKS_EXCLUDED(mu_);

  void RunWriter() ABSL_LOCKS_EXCLUDED(mu_);
  bool WriteIsDue() const ABSL_SHARED_LOCKS_REQUIRED(mu_);
  std::vector<BlockImage> PickDirty() const ABSL_SHARED_LOCKS_REQUIRED(mu_);
  absl::Status WriteBack(absl::Span<const BlockImage> images) ABSL_LOCKS_EXCLUDED(mu_);
  absl::Status WriteToStores(const HeadStores& stores, const std::function<absl::Status(const HeadStores&)>& write) ABSL_LOCKS_EXCLUDED(mu_);
  absl::StatusOr<LiveStores> WritableStores() ABSL_LOCKS_EXCLUDED(mu_);
  void SettleWrite(const std::vector<BlockImage>& images) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void ReleaseImages(std::vector<BlockImage>* images) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  absl::Status CopySpilled(const HeadStores& from, const HeadStores& to) ABSL_LOCKS_EXCLUDED(mu_);
  void ReportGauges() const ABSL_SHARED_LOCKS_REQUIRED(mu_);

  const BankSpec& spec_;
  const std::shared_ptr<BufferPool> buffers_;
  const Options options_;

  mutable absl::Mutex mu_;  // short: tables and pointers, never held over I/O
  absl::CondVar changed_;   // room, loads, writes and stopping; with mu_
  absl::flat_hash_map<BlockId, std::unique_ptr<Entry>> entries_ ABSL_GUARDED_BY(mu_);
  std::vector<Entry*> clock_ ABSL_GUARDED_BY(mu_);       // all entries
  size_t hand_ ABSL_GUARDED_BY(mu_) = 0;
  uint64_t generation_ ABSL_GUARDED_BY(mu_) = 0;         // counts Install: entries of an older one are gone
  LiveStores stores_ ABSL_GUARDED_BY(mu_);
  bool stores_failed_ ABSL_GUARDED_BY(mu_) = false;      // a write failed: still read, replaced before the next write
  bool writing_ ABSL_GUARDED_BY(mu_) = false;            // the stores have a writer: the thread or a cut
  bool stopping_ ABSL_GUARDED_BY(mu_) = false;
  int waiting_for_room_ ABSL_GUARDED_BY(mu_) = 0;
  absl::Status write_error_ ABSL_GUARDED_BY(mu_);        // of the writer's last attempt
  uint64_t resident_bytes_ ABSL_GUARDED_BY(mu_) = 0, reserved_bytes_ ABSL_GUARDED_BY(mu_) = 0, dirty_bytes_ ABSL_GUARDED_BY(mu_) = 0;
  uint64_t spilled_blocks_ ABSL_GUARDED_BY(mu_) = 0, disk_reads_ ABSL_GUARDED_BY(mu_) = 0;
  uint64_t prefetches_queued_ ABSL_GUARDED_BY(mu_) = 0;

  std::unique_ptr<ThreadPool> prefetchers_;  // both only with a budget
  std::thread writer_;
};

}  // namespace membank
