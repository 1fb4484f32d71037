// The file system below the block stores. RocksDB 7.8.3 may end the process when a write fails for want of space (an assertion in its error
// recovery; design/promises.md), and the free-space watermark cannot keep others from filling the disk during a write. So room is allocated
// before every write, and a write that finds none waits for it, however long: reads go on, new writes are refused by the watermark.
#pragma once

#include <string>

#include "absl/status/status.h"

namespace rocksdb {
class Env;
}

namespace membank {

enum class Durable : bool {
  kWhenSynced,
  kLater,  // a sync only starts the writing: for many files that are then made durable together, by SyncFile
};

// One of each kind for the process; files of all stores.
rocksdb::Env* PatientEnv(Durable durable = Durable::kWhenSynced);

// The process is about to end: writes that wait for room, and those that would, fail from here on.
void StopWaitingForRoom();

absl::Status SyncFile(const std::string& path);

}  // namespace membank
