// Which slots this server owns: the slot map it follows, replaced as a whole when it adopts a newer one. A server that the map does not list
// owns nothing: it waits for slots to be moved to it. Thread-safe.
#pragma once

#include <memory>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "common/bank/slot_map.h"

namespace membank {

// Payload of the error about a block of another server: this server's slot-map epoch as decimal text.
inline constexpr char kSlotMapEpochPayload[] = "membank/slot-map-epoch";

class SlotOwnership {
 public:
  SlotOwnership(std::string server_id, SlotMap map);

  // FAILED_PRECONDITION with kSlotMapEpochPayload unless this server owns the block's slot.
  absl::Status Check(BlockId id) const ABSL_LOCKS_EXCLUDED(mu_);
  // A caller that cut its request by another map than this server's: FAILED_PRECONDITION with kSlotMapEpochPayload. 0: the caller did not say.
  absl::Status CheckEpoch(uint64_t callers_epoch) const ABSL_LOCKS_EXCLUDED(mu_);

  std::shared_ptr<const SlotMap> map() const ABSL_LOCKS_EXCLUDED(mu_);
  uint64_t epoch() const { return map()->epoch(); }
  SlotSet slots() const ABSL_LOCKS_EXCLUDED(mu_);
  // Slots not in `slots` are refused until the next Adopt: a change of what they hold is under way.
  void Restrict(const SlotSet& slots) ABSL_LOCKS_EXCLUDED(mu_);
  void Adopt(SlotMap map) ABSL_LOCKS_EXCLUDED(mu_);

 private:
  const std::string server_id_;
  mutable absl::Mutex mu_;
  std::shared_ptr<const SlotMap> map_ ABSL_GUARDED_BY(mu_);
  SlotSet slots_ ABSL_GUARDED_BY(mu_);
};

}  // namespace membank
