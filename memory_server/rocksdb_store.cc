#include "memory_server/rocksdb_store.h"

#include <rocksdb/db.h>
#include <rocksdb/filter_policy.h>
#include <rocksdb/table.h>
#include <rocksdb/utilities/checkpoint.h>
#include <rocksdb/write_batch.h>

#include <filesystem>

#include "common/base/file.h"
#include "common/base/status_macros.h"

namespace membank {
namespace {

rocksdb::Slice ToSlice(std::string_view text) { return {text.data(), text.size()}; }
rocksdb::Slice ToSlice(absl::Span<const uint8_t> bytes) { return {reinterpret_cast<const char*>(bytes.data()), bytes.size()}; }
absl::Span<const uint8_t> ToBytes(const rocksdb::Slice& slice) { return {reinterpret_cast<const uint8_t*>(slice.data()), slice.size()}; }

rocksdb::Options MakeOptions(StoreAccess access) {
  const bool read_only = access == StoreAccess::kReadOnly;
  rocksdb::BlockBasedTableOptions table;
  table.no_block_cache = true;  // the live head is never read back, versions are mapped
  table.filter_policy.reset(rocksdb::NewBloomFilterPolicy(10));
  rocksdb::Options options;
  options.table_factory.reset(rocksdb::NewBlockBasedTableFactory(table));
  options.create_if_missing = !read_only;
  options.compression = rocksdb::kNoCompression;
  options.write_buffer_size = 64 << 20;
  options.max_write_buffer_number = 3;
  options.target_file_size_base = 256 << 20;
  options.max_bytes_for_level_base = uint64_t{1} << 30;
  options.max_background_jobs = 2;
  options.avoid_flush_during_shutdown = true;  // what was not cut is not kept
  options.allow_mmap_reads = read_only;
  options.info_log_level = rocksdb::WARN_LEVEL;
  options.keep_log_file_num = 2;
  return options;
}

class Store : public BlockStore {
 public:
  Store(const std::string& directory, std::unique_ptr<rocksdb::DB> db) : directory_(directory), db_(std::move(db)) {}

  absl::Status Put(std::string_view key, absl::Span<const uint8_t> value) override {
    return ToStatus("put", db_->Put(WithoutLog(), ToSlice(key), ToSlice(value)));
  }

  absl::Status Delete(std::string_view key) override { return ToStatus("delete", db_->Delete(WithoutLog(), ToSlice(key))); }

  absl::Status Apply(absl::Span<const Write> batch) override {
    rocksdb::WriteBatch writes;
    for (const Write& write : batch) {
      const rocksdb::Slice key = ToSlice(write.key);
      if (write.erase) {
        RETURN_IF_ERROR(ToStatus("delete", writes.Delete(key)));
        continue;
      }
      std::vector<rocksdb::Slice> parts;
      for (absl::Span<const uint8_t> part : write.parts) parts.push_back(ToSlice(part));
      RETURN_IF_ERROR(ToStatus("put", writes.Put(rocksdb::SliceParts(&key, 1), rocksdb::SliceParts(parts.data(), int(parts.size())))));
    }
    return ToStatus("write", db_->Write(WithoutLog(), &writes));
  }

  absl::Status Get(std::string_view key, const std::function<void(absl::Span<const uint8_t>)>& visit) override {
    rocksdb::PinnableSlice value;
    const rocksdb::Status status = db_->Get(rocksdb::ReadOptions(), db_->DefaultColumnFamily(), ToSlice(key), &value);
    if (status.IsNotFound()) return NotFound("block store {} has no such key", directory_);
    RETURN_IF_ERROR(ToStatus("get", status));
    visit(ToBytes(value));
    return absl::OkStatus();
  }

  absl::Status Scan(std::string_view prefix, const Visitor& visit) override {
    const std::unique_ptr<rocksdb::Iterator> it(db_->NewIterator(rocksdb::ReadOptions()));
    for (it->Seek(ToSlice(prefix)); it->Valid() && it->key().starts_with(ToSlice(prefix)); it->Next())
      RETURN_IF_ERROR(visit({it->key().data(), it->key().size()}, ToBytes(it->value())));
    return ToStatus("scan", it->status());
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

  static rocksdb::WriteOptions WithoutLog() {
    rocksdb::WriteOptions options;
    options.disableWAL = true;
    return options;
  }

  const std::string directory_;
  const std::unique_ptr<rocksdb::DB> db_;
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
  return std::make_unique<Store>(directory, std::unique_ptr<rocksdb::DB>(db));
}

}  // namespace membank
