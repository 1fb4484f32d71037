// The BlockStore on RocksDB 7.8.3, with what research/hot-path.md measured: no write-ahead log, no compression, block tables (blob files
// lose keys when opened read-only), mapped reads for read-only stores. No RocksDB type leaves rocksdb_store.cc.
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
