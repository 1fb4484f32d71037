#include "memory_server/replica_follower.h"

#include "absl/time/clock.h"
#include "common/base/log.h"
#include "common/base/metrics.h"
#include "common/base/status_macros.h"
#include "memory_server/slot_stream.h"

namespace membank {
namespace {

constexpr absl::Duration kPause = absl::Seconds(1), kLongestCopy = absl::Hours(12);

}  // namespace

ReplicaFollower::ReplicaFollower(Shard* shard, SlotMover* mover, const TlsFiles& tls)
    : shard_(shard), mover_(mover), tls_(tls), watch_([this] { Watch(); }) {}

ReplicaFollower::~ReplicaFollower() {
  stop_.Notify();
  watch_.join();
}

absl::Status ReplicaFollower::Look() {
  const std::shared_ptr<const SlotMap> map = shard_->slot_map();
  ASSIGN_OR_RETURN(const size_t owner, map->ServerIndex(shard_->replica_of()));
  ASSIGN_OR_RETURN(const SlotCopyResult copied, CopyVersions(mover_, shard_->spec_hash(), tls_, map->servers()[owner].address,
                                                             map->SlotsOf(shard_->replica_of()), absl::Now() + kLongestCopy));
  static prometheus::Counter& bytes = GetCounter("membank_memory_replicated_bytes_total", "Bytes of published versions copied from the owner");
  bytes.Increment(static_cast<double>(copied.bytes));
  if (copied.bytes > 0) LOG_INFO("{} blocks of new versions copied from server {}, {} bytes", copied.blocks, shard_->replica_of(), copied.bytes);
  return absl::OkStatus();
}

void ReplicaFollower::Watch() {
  absl::Status last;
  do {
    const absl::Status status = Look();
    if (!status.ok() && status.code() != last.code()) LOG_WARN("no new versions: {}", status.ToString());
    last = status;
  } while (!stop_.WaitForNotificationWithTimeout(kPause));
}

}  // namespace membank
