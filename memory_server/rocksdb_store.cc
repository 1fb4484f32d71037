#include "memory_server/rocksdb_store.h"

#include <rocksdb/convenience.h>
#include <rocksdb/db.h>
#include <rocksdb/filter_policy.h>
#include <rocksdb/sst_file_writer.h>
#include <rocksdb/table.h>
#include <rocksdb/utilities/checkpoint.h>
#include <rocksdb/write_batch.h>

#include <algorithm>
#include <atomic>
#include <filesystem>
#include <set>

#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "common/base/file.h"
#include "common/base/status_macros.h"
#include "memory_server/patient_file_system.h"

namespace membank {
namespace {

rocksdb::Slice ToSlice(std::string_view text) { return {text.data(), text.size()}; }
absl::Span<const uint8_t> ToBytes(const rocksdb::Slice& slice) { return {reinterpret_cast<const uint8_t*>(slice.data()), slice.size()}; }

// A value of this size or more has a table file of its own.
constexpr uint64_t kOwnFileBytes = 512 << 10;
constexpr int kOpenHeadFiles = 512;
constexpr absl::Duration kOldFilesTimeout = absl::Seconds(30);

rocksdb::Options MakeOptions(StoreAccess access) {
  const bool read_only = access == StoreAccess::kReadOnly;
  rocksdb::BlockBasedTableOptions table;
  table.no_block_cache = true;  // the shard has caches of its own, versions are mapped
  table.filter_policy.reset(rocksdb::NewBloomFilterPolicy(10));
  rocksdb::Options options;
  options.table_factory.reset(rocksdb::NewBlockBasedTableFactory(table));
  options.env = PatientEnv();
  options.create_if_missing = !read_only;
  options.compression = rocksdb::kNoCompression;
  options.write_buffer_size = 16 << 20;  // for small values only
  options.target_file_size_base = 256 << 20;
  options.max_bytes_for_level_base = uint64_t{1} << 30;
  options.max_background_jobs = 2;
  options.avoid_flush_during_shutdown = true;  // what was not cut is not kept
  options.allow_mmap_reads = read_only;
  if (!read_only) options.max_open_files = kOpenHeadFiles;  // of read-only stores all: then mapped reads are pinned
  options.info_log_level = rocksdb::WARN_LEVEL;
  options.keep_log_file_num = 2;
  return options;
}

// A batch on its way into the database: large values as table files beside it, one each, the rest as writes.
class PreparedBatch {
 public:
  // `options`: of the table files.
  PreparedBatch(const std::string& directory, const rocksdb::Options& options) : directory_(directory), options_(options) {}

  // Keys ascend. The disk writes one file while the next one is made; all are durable in the end.
  rocksdb::Status Make(const std::vector<const BlockStore::Write*>& writes) {
    for (const BlockStore::Write* write : writes) {
      const rocksdb::Slice value = Join(*write);
      if (value.size() < kOwnFileBytes) {
        const rocksdb::Status status = write->erase ? small_.Delete(ToSlice(write->key)) : small_.Put(ToSlice(write->key), value);
        if (!status.ok()) return status;
        continue;
      }
      static std::atomic<uint64_t> number{0};
      files_.push_back(fmt::format("{}/ingest-{}.sst", directory_, ++number));
      file_keys_.push_back(write->key);
      rocksdb::SstFileWriter file(rocksdb::EnvOptions(), options_, nullptr, /*invalidate_page_cache=*/false);
      rocksdb::Status status = file.Open(files_.back());
      if (status.ok()) status = file.Put(ToSlice(write->key), value);
      if (status.ok()) status = file.Finish();
      if (!status.ok()) return status;
    }
    for (const std::string& file : files_)
      if (const absl::Status synced = SyncFile(file); !synced.ok())
        return absl::IsResourceExhausted(synced) ? rocksdb::Status::NoSpace(synced.ToString()) : rocksdb::Status::IOError(synced.ToString());
    return rocksdb::Status::OK();
  }

  const std::vector<std::string>& files() const { return files_; }
  const std::vector<std::string>& file_keys() const { return file_keys_; }
  rocksdb::WriteBatch* small() { return &small_; }

  void RemoveFiles() const {
    std::error_code ignored;
    for (const std::string& file : files_) std::filesystem::remove(file, ignored);
  }

 private:
  rocksdb::Slice Join(const BlockStore::Write& write) {
    joined_.clear();
    size_t size = 0;
    for (absl::Span<const uint8_t> part : write.parts) size += part.size();
    joined_.reserve(size);
    for (absl::Span<const uint8_t> part : write.parts) joined_.append(reinterpret_cast<const char*>(part.data()), part.size());
    return joined_;
  }

  const std::string& directory_;
  const rocksdb::Options& options_;
  std::string joined_;
  std::vector<std::string> files_, file_keys_;
  rocksdb::WriteBatch small_;
};

class Store : public BlockStore {
 public:
  Store(const std::string& directory, const rocksdb::Options& options, std::unique_ptr<rocksdb::DB> db, bool writable)
      : directory_(directory), ingest_options_(options), writable_(writable), db_(std::move(db)) {
    ingest_options_.env = PatientEnv(Durable::kLater);
  }

  absl::Status Put(std::string_view key, absl::Span<const uint8_t> value) override {
    const Write write{std::string(key), {value}};
    return Apply({&write, 1});
  }

  absl::Status Delete(std::string_view key) override {
    const Write write{std::string(key), {}, true};
    return Apply({&write, 1});
  }

  absl::Status Apply(absl::Span<const Write> batch) override {
    if (!writable_) return FailedPrecondition("block store {} is open read-only", directory_);
    std::vector<const Write*> writes;
    for (const Write& write : batch) writes.push_back(&write);
    std::sort(writes.begin(), writes.end(), [](const Write* a, const Write* b) { return a->key < b->key; });
    PreparedBatch prepared(directory_, ingest_options_);
    const rocksdb::Status made = prepared.Make(writes);
    if (!made.ok()) {
      prepared.RemoveFiles();
      return ToStatus("write", made);  // the database never saw it
    }
    const absl::MutexLock lock(&replace_mu_);
    const rocksdb::Status status = Replace(&prepared);
    if (status.ok()) return absl::OkStatus();
    prepared.RemoveFiles();
    return absl::InternalError(fmt::format("block store {}: write: {}", directory_, status.ToString()));
  }

  absl::Status Get(std::string_view key, const std::function<void(absl::Span<const uint8_t>)>& visit) override {
    rocksdb::PinnableSlice value;
    rocksdb::Status status;
    {
      const absl::ReaderMutexLock lock(&replace_mu_);
      status = db_->Get(rocksdb::ReadOptions(), db_->DefaultColumnFamily(), ToSlice(key), &value);
    }
    if (status.IsNotFound()) return NotFound("block store {} has no such key", directory_);
    RETURN_IF_ERROR(ToStatus("get", status));
    visit(ToBytes(value));
    return absl::OkStatus();
  }

  absl::Status Scan(std::string_view prefix, const Visitor& visit) override {
    std::unique_ptr<rocksdb::Iterator> it;
    {
      const absl::ReaderMutexLock lock(&replace_mu_);
      it.reset(db_->NewIterator(rocksdb::ReadOptions()));
    }
    for (it->Seek(ToSlice(prefix)); it->Valid() && it->key().starts_with(ToSlice(prefix)); it->Next())
      RETURN_IF_ERROR(visit({it->key().data(), it->key().size()}, ToBytes(it->value())));
    return ToStatus("scan", it->status());
  }

  absl::Status Seek(std::string_view key, const Visitor& visit) override {
    std::unique_ptr<rocksdb::Iterator> it;
    {
      const absl::ReaderMutexLock lock(&replace_mu_);
      it.reset(db_->NewIterator(rocksdb::ReadOptions()));
    }
    it->Seek(ToSlice(key));
    if (it->Valid()) return visit({it->key().data(), it->key().size()}, ToBytes(it->value()));
    return ToStatus("seek", it->status());
  }

  absl::Status Verify() override {
    const absl::ReaderMutexLock lock(&replace_mu_);
    return ToStatus("verify", db_->VerifyChecksum(rocksdb::ReadOptions()));
  }

  absl::Status Erase(std::string_view first, std::string_view last) override {
    if (!writable_) return FailedPrecondition("block store {} is open read-only", directory_);
    const rocksdb::Slice begin = ToSlice(first), end = ToSlice(last);
    rocksdb::WriteBatch deletes;
    {
      const absl::ReaderMutexLock lock(&replace_mu_);
      rocksdb::ReadOptions options;
      options.iterate_upper_bound = &end;
      const std::unique_ptr<rocksdb::Iterator> it(db_->NewIterator(options));
      for (it->Seek(begin); it->Valid(); it->Next()) RETURN_IF_ERROR(ToStatus("delete", deletes.Delete(it->key())));
      RETURN_IF_ERROR(ToStatus("scan", it->status()));
    }
    RETURN_IF_ERROR(ToStatus("delete", db_->Write(WithoutLog(), &deletes)));
    RETURN_IF_ERROR(Flush());
    rocksdb::CompactRangeOptions options;  // rewrites all files of the range, so that deleted and overwritten values go
    options.bottommost_level_compaction = rocksdb::BottommostLevelCompaction::kForce;
    RETURN_IF_ERROR(ToStatus("compact", db_->CompactRange(options, &begin, &end)));
    return WaitForOldFiles();
  }

  absl::Status Flush() override { return ToStatus("flush", db_->Flush(rocksdb::FlushOptions())); }

  absl::Status Cut(const std::string& directory) override {
    if (std::filesystem::exists(directory)) return AlreadyExists("{} exists, a cut needs a new directory", directory);
    rocksdb::Checkpoint* raw = nullptr;
    RETURN_IF_ERROR(ToStatus("cut", rocksdb::Checkpoint::Create(db_.get(), &raw)));
    const std::unique_ptr<rocksdb::Checkpoint> checkpoint(raw);
    return ToStatus("cut", checkpoint->CreateCheckpoint(directory, /*log_size_for_flush=*/0));
  }

  static absl::Status ToStatus(std::string_view directory, std::string_view operation, const rocksdb::Status& status) {
    if (status.ok()) return absl::OkStatus();
    const std::string message = fmt::format("block store {}: {}: {}", directory, operation, status.ToString());
    if (status.IsCorruption()) return absl::DataLossError(message);
    if (status.IsNoSpace()) return absl::ResourceExhaustedError(message);
    if (status.IsNotSupported()) return absl::FailedPreconditionError(message);  // a write to a read-only store
    return absl::InternalError(message);
  }

 private:
  absl::Status ToStatus(std::string_view operation, const rocksdb::Status& status) const { return ToStatus(directory_, operation, status); }

  // Makes the batch part of the database, at once for readers. The old files of large values are dropped first, so that the new ones go to
  // the lowest level and nothing large is ever compacted: each block is written once.
  rocksdb::Status Replace(PreparedBatch* batch) ABSL_EXCLUSIVE_LOCKS_REQUIRED(replace_mu_) {
    if (!batch->files().empty()) {
      const std::vector<rocksdb::Slice> keys(batch->file_keys().begin(), batch->file_keys().end());
      std::vector<rocksdb::RangePtr> ranges;
      for (const rocksdb::Slice& key : keys) ranges.emplace_back(&key, &key);
      const rocksdb::Status dropped = rocksdb::DeleteFilesInRanges(db_.get(), db_->DefaultColumnFamily(), ranges.data(), ranges.size());
      if (!dropped.ok()) return dropped;
      rocksdb::IngestExternalFileOptions options;
      options.move_files = true;
      options.write_global_seqno = false;
      const rocksdb::Status ingested = db_->IngestExternalFile(batch->files(), options);
      if (!ingested.ok()) return ingested;
    }
    if (batch->small()->Count() == 0) return rocksdb::Status::OK();
    return db_->Write(WithoutLog(), batch->small());
  }

  static rocksdb::WriteOptions WithoutLog() {
    rocksdb::WriteOptions options;
    options.disableWAL = true;
    return options;
  }

  // The engine unlinks what a compaction replaced a moment after it, and when the last read of it ends.
  absl::Status WaitForOldFiles() {
    const absl::Time give_up = absl::Now() + kOldFilesTimeout;
    while (true) {
      std::vector<rocksdb::LiveFileMetaData> live;
      db_->GetLiveFilesMetaData(&live);
      std::set<std::string> names;
      for (const rocksdb::LiveFileMetaData& file : live) names.insert(file.relative_filename);
      std::string old;
      for (const auto& entry : std::filesystem::directory_iterator(directory_)) {
        const std::string name = entry.path().filename();
        if (name.ends_with(".sst") && !names.contains(name)) old = name;
      }
      if (old.empty()) return absl::OkStatus();
      if (absl::Now() >= give_up) return Unavailable("block store {}: {} is still being read after {}; try again", directory_, old, absl::FormatDuration(kOldFilesTimeout));
      absl::SleepFor(absl::Milliseconds(1));
    }
  }

  const std::string directory_;
  rocksdb::Options ingest_options_;  // of the table files that come in
  const bool writable_;
  const std::unique_ptr<rocksdb::DB> db_;
  absl::Mutex replace_mu_;  // shared by readers while they find their table; a few milliseconds of a writer
};

}  // namespace

absl::StatusOr<std::unique_ptr<BlockStore>> RocksDbStore::Open(const std::string& directory, StoreAccess access) {
  if (access == StoreAccess::kReadOnly && !std::filesystem::exists(directory + "/CURRENT"))
    return NotFound("block store {} does not exist", directory);
  if (access == StoreAccess::kReadWrite) RETURN_IF_ERROR(MakeDirectories(directory));
  const rocksdb::Options options = MakeOptions(access);
  rocksdb::DB* db = nullptr;
  const rocksdb::Status status = access == StoreAccess::kReadOnly ? rocksdb::DB::OpenForReadOnly(options, directory, &db)
                                                                  : rocksdb::DB::Open(options, directory, &db);
  RETURN_IF_ERROR(Store::ToStatus(directory, "open", status));
  return std::make_unique<Store>(directory, options, std::unique_ptr<rocksdb::DB>(db), access == StoreAccess::kReadWrite);
}

}  // namespace membank
