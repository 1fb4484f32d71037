// A BlockStore in a map: for tests and for banks that fit beside their owner. Flush and Cut write one file, blocks.bin, with a checksum.
#pragma once

#include <map>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "memory_server/block_store.h"

namespace membank {

class InMemoryBlockStore : public BlockStore {
 public:
  static absl::StatusOr<std::unique_ptr<BlockStore>> Open(const std::string& directory, StoreAccess access);

  absl::Status Put(std::string_view key, absl::Span<const uint8_t> value) override ABSL_LOCKS_EXCLUDED(mu_);
  absl::Status Delete(std::string_view key) override ABSL_LOCKS_EXCLUDED(mu_);
  absl::Status Apply(absl::Span<const Write> batch) override ABSL_LOCKS_EXCLUDED(mu_);
  absl::Status Get(std::string_view key, const std::function<void(absl::Span<const uint8_t>)>& visit) override ABSL_LOCKS_EXCLUDED(mu_);
  absl::Status Scan(std::string_view prefix, const Visitor& visit) override ABSL_LOCKS_EXCLUDED(mu_);
  absl::Status Seek(std::string_view key, const Visitor& visit) override ABSL_LOCKS_EXCLUDED(mu_);
  absl::Status Verify() override ABSL_LOCKS_EXCLUDED(mu_);
  absl::Status Erase(std::string_view first, std::string_view last) override ABSL_LOCKS_EXCLUDED(mu_);
  absl::Status Flush() override ABSL_LOCKS_EXCLUDED(mu_);
  absl::Status Cut(const std::string& directory) override ABSL_LOCKS_EXCLUDED(mu_);

 private:
  InMemoryBlockStore(const std::string& directory, bool writable) : directory_(directory), writable_(writable) {}
  absl::Status CheckWritable() const;
  absl::Status Save(const std::string& directory) const ABSL_SHARED_LOCKS_REQUIRED(mu_);
  absl::Status Load();

  const std::string directory_;
  const bool writable_;
  mutable absl::Mutex mu_;
  std::map<std::string, std::string, std::less<>> values_ ABSL_GUARDED_BY(mu_);
};

}  // namespace membank
