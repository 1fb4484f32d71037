// Keeps a server on the newest slot map: reads it when its source says that it may have changed, and when asked. A map that cannot be read is
// reported once and changes nothing: the server goes on with the last one. Owned by the service; thread-safe.
#pragma once

#include <memory>
#include <thread>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "absl/synchronization/notification.h"
#include "common/bank/slot_map_source.h"
#include "memory_server/slot_move.h"

namespace membank {

class SlotMapFollower {
 public:
  SlotMapFollower(std::unique_ptr<SlotMapSource> source, SlotMover* mover);
  ~SlotMapFollower();

  absl::Status Look() ABSL_LOCKS_EXCLUDED(mu_);  // reads the map now and adopts it when it is newer

 private:
  void Watch();

  const std::unique_ptr<SlotMapSource> source_;
  SlotMover* const mover_;
  absl::Mutex mu_;  // one look at a time
  absl::Notification stop_;
  std::thread watch_;
};

}  // namespace membank
