// The BlockStore on RocksDB 7.8.3, with what research/hot-path.md measured: no write-ahead log, no compression, block tables (blob files
// lose keys when opened read-only), mapped reads for read-only stores. A large value becomes a table file of its own that the database takes
// in whole, past its memtables, in place of its predecessor: no memory, no stall, durable at once, never compacted, and a full disk is found
// before the database is touched. No RocksDB type leaves rocksdb_store.cc.
#pragma once

#include <memory>
#include <string>

#include "memory_server/block_store.h"

namespace membank {

class RocksDbStore {
 public:
  static absl::StatusOr<std::unique_ptr<BlockStore>> Open(const std::string& directory, StoreAccess access);
};

}  // namespace membank
