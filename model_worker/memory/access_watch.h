// What a worker knows of the bank's access table: polls the memory servers, so that blocks cached here are not used longer than the lease after
// the servers acknowledged a block (promise P6). A change is acknowledged only when every server has it, so an answer of any one server renews
// the lease; when none answers for as long as the lease, cached blocks must not be used. Any thread.
#pragma once

#include <functional>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "common/bank/access_table.h"
#include "common/client/access_client.h"

namespace membank {

class AccessWatch {
 public:
  // One look at the servers, at most this long.
  using Read = std::function<absl::StatusOr<AccessView>(std::chrono::milliseconds timeout)>;

  // Reads the table once before it returns; the thread goes on five times per lease.
  AccessWatch(Read read, uint32_t fan_out, absl::Duration lease);
  ~AccessWatch();

  // Grows when a server is seen to have a newer table: what was fetched at another epoch must be asked for again. A server that takes a change over
  // after the others makes it grow once more, because until then it decided by its old table.
  uint64_t epoch() const ABSL_LOCKS_EXCLUDED(mu_);
  // UNAVAILABLE when the lease is over.
  absl::Status CheckLease() const ABSL_LOCKS_EXCLUDED(mu_);
  bool IsBlocked(BlockId id) const ABSL_LOCKS_EXCLUDED(mu_);
  absl::Duration lease() const { return lease_; }

 private:
  void Look() ABSL_LOCKS_EXCLUDED(mu_);
  void Run();

  const Read read_;
  const uint32_t fan_out_;
  const absl::Duration lease_;

  mutable absl::Mutex mu_;
  AccessTable table_ ABSL_GUARDED_BY(mu_);
  std::vector<uint64_t> epochs_ ABSL_GUARDED_BY(mu_);               // the newest that each server was seen to have
  absl::Time read_at_ ABSL_GUARDED_BY(mu_) = absl::InfinitePast();  // when the last successful look began
  absl::Status error_ ABSL_GUARDED_BY(mu_);                         // of the last look
  bool stopping_ ABSL_GUARDED_BY(mu_) = false;

  std::thread thread_;  // last: uses everything above
};

}  // namespace membank
