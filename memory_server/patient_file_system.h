// The file system below the block stores. RocksDB 7.8.3 may end the process when a write fails for want of space (an assertion in its error
// recovery; design/promises.md), and the free-space watermark cannot keep others from filling the disk during a write. So room is allocated
// before every write, and a write that finds none waits for it: half a minute, then it fails.
#pragma once

namespace rocksdb {
class Env;
}

namespace membank {

// One for the process; files of all stores.
rocksdb::Env* PatientEnv();

}  // namespace membank
