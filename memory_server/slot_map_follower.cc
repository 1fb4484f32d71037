#include "memory_server/slot_map_follower.h"

#include "common/base/log.h"
#include "common/base/status_macros.h"

namespace membank {

SlotMapFollower::SlotMapFollower(std::unique_ptr<SlotMapSource> source, SlotMover* mover)
    : source_(std::move(source)), mover_(mover), watch_([this] { Watch(); }) {}

SlotMapFollower::~SlotMapFollower() {
  stop_.Notify();
  source_->Stop();
  watch_.join();
}

absl::Status SlotMapFollower::Look() {
  absl::MutexLock lock(&mu_);
  ASSIGN_OR_RETURN(const SlotMap map, source_->Load());
  return mover_->Adopt(map);
}

void SlotMapFollower::Watch() {
  absl::Status last;
  while (true) {
    source_->AwaitChange();
    if (stop_.HasBeenNotified()) return;
    const absl::Status status = Look();
    if (!status.ok() && status.message() != last.message()) LOG_ERROR("the slot map cannot be followed: {}", status.ToString());
    last = status;
  }
}

}  // namespace membank
