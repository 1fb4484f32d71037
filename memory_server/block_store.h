// The durable map below a shard: short binary keys to byte strings of up to 2 GiB. RAM is the home of mutable state; a store is written
// when a checkpoint is prepared or a block spills, and read when one comes back, is restored or served, so it has no write-ahead log: what
// was written is durable after Cut (or Flush), and a crash before may lose it. An engine sits behind this interface and cannot be seen through it (tikv
// components/engine_traits); tests/memory_server/block_store_test.cc is the one conformance suite for every engine.
//
// Errors: NOT_FOUND for a key that is not there (names no engine detail), DATA_LOSS when the engine finds damage, RESOURCE_EXHAUSTED
// when the disk is full (nothing changed, write again when there is space), INTERNAL otherwise; each names the store's directory. After any
// other failed write the store may be unusable for writes; it is replaced, never repaired. Any thread; a batch is atomic to readers.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"

namespace membank {

class BlockStore {
 public:
  struct Write {
    std::string key;
    std::vector<absl::Span<const uint8_t>> parts;  // the value is their concatenation; borrowed until Apply returns
    bool erase = false;
  };
  // Returning an error stops the scan with it. The value is borrowed for the call.
  using Visitor = std::function<absl::Status(std::string_view key, absl::Span<const uint8_t> value)>;

  virtual ~BlockStore() = default;

  virtual absl::Status Put(std::string_view key, absl::Span<const uint8_t> value) = 0;
  virtual absl::Status Delete(std::string_view key) = 0;  // a missing key is fine
  virtual absl::Status Apply(absl::Span<const Write> batch) = 0;  // all or nothing
  // `visit` borrows the value from the engine, so that the only copy is the one the caller makes.
  virtual absl::Status Get(std::string_view key, const std::function<void(absl::Span<const uint8_t>)>& visit) = 0;
  virtual absl::Status Scan(std::string_view prefix, const Visitor& visit) = 0;  // ascending keys
  // The first key that is not below `key`, if there is one. As Get, `visit` borrows the value.
  virtual absl::Status Seek(std::string_view key, const Visitor& visit) = 0;
  // Removes the keys from `first` up to, not including, `last`: afterwards no file of the store holds a byte of them, of older values neither.
  virtual absl::Status Erase(std::string_view first, std::string_view last) = 0;
  // Reads everything that lies on disk against the engine's own checksums; DATA_LOSS names the file.
  virtual absl::Status Verify() = 0;
  virtual absl::Status Flush() = 0;
  // A durable, self-contained image of the store in `directory` (which must not exist), by hard links where the engine can. The image is
  // never modified by later writes; Open of the same engine reads it.
  virtual absl::Status Cut(const std::string& directory) = 0;
};

enum class StoreAccess { kReadWrite, kReadOnly };  // kReadWrite creates what is missing; kReadOnly is NOT_FOUND for a missing store

// How a shard opens its stores: RocksDbStore::Open or InMemoryBlockStore::Open.
using OpenBlockStore = std::function<absl::StatusOr<std::unique_ptr<BlockStore>>(const std::string& directory, StoreAccess access)>;

}  // namespace membank
