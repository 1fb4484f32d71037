// Keeps a replica up: looks every second for versions that its owner has published and copies what is new. When the owner is away the replica
// serves what it has. Owned by the service; thread-safe.
#pragma once

#include <string>
#include <thread>

#include "absl/synchronization/notification.h"
#include "common/rpc/tls.h"
#include "memory_server/slot_move.h"

namespace membank {

class ReplicaFollower {
 public:
  ReplicaFollower(Shard* shard, SlotMover* mover, const TlsFiles& tls);
  ~ReplicaFollower();

 private:
  absl::Status Look();
  void Watch();

  Shard* const shard_;
  SlotMover* const mover_;
  const TlsFiles tls_;
  absl::Notification stop_;
  std::thread watch_;
};

}  // namespace membank
