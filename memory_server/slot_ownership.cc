#include "memory_server/slot_ownership.h"

#include "common/base/status_macros.h"

namespace membank {
namespace {

absl::Status WithEpoch(absl::Status status, uint64_t epoch) {
  status.SetPayload(kSlotMapEpochPayload, absl::Cord(std::to_string(epoch)));
  return status;
}

}  // namespace

SlotOwnership::SlotOwnership(std::string server_id, SlotMap map)
    : server_id_(std::move(server_id)), map_(std::make_shared<const SlotMap>(std::move(map))), slots_(map_->SlotsOf(server_id_)) {}

absl::Status SlotOwnership::Check(BlockId id) const {
  absl::ReaderMutexLock lock(&mu_);
  if (slots_[SlotOf(id)]) return absl::OkStatus();
  const std::string& owner = map_->servers()[map_->OwnerOf(id)].id;
  if (owner == server_id_)
    return WithEpoch(FailedPrecondition("slot {} of block {} is just changing hands; ask again", SlotOf(id), ToString(id)), map_->epoch());
  return WithEpoch(FailedPrecondition("block {} in slot {} belongs to server \"{}\", not to \"{}\", by slot map epoch {}; reload the map",
                                      ToString(id), SlotOf(id), owner, server_id_, map_->epoch()),
                   map_->epoch());
}

absl::Status SlotOwnership::CheckEpoch(uint64_t callers_epoch) const {
  absl::ReaderMutexLock lock(&mu_);
  if (callers_epoch == 0 || callers_epoch == map_->epoch()) return absl::OkStatus();
  return WithEpoch(FailedPrecondition("the caller follows slot map epoch {}, server \"{}\" follows epoch {}; reload the map and send it again",
                                      callers_epoch, server_id_, map_->epoch()),
                   map_->epoch());
}

std::shared_ptr<const SlotMap> SlotOwnership::map() const {
  absl::ReaderMutexLock lock(&mu_);
  return map_;
}

SlotSet SlotOwnership::slots() const {
  absl::ReaderMutexLock lock(&mu_);
  return slots_;
}

void SlotOwnership::Restrict(const SlotSet& slots) {
  absl::MutexLock lock(&mu_);
  slots_ &= slots;
}

void SlotOwnership::Adopt(SlotMap map) {
  auto next = std::make_shared<const SlotMap>(std::move(map));
  absl::MutexLock lock(&mu_);
  slots_ = next->SlotsOf(server_id_);
  map_.swap(next);
}

}  // namespace membank
