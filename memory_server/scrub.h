// Reads what lies on disk for months before somebody needs it, checkpoints and published versions, and checks every record's checksum: damage
// is found while a replica or an older checkpoint still has the bytes. A background thread with a rate limit; reads beside it go on. Metrics:
// membank_memory_scrub_age_seconds since the end of the last whole pass, membank_memory_scrub_damaged_records found by it.
#pragma once

#include <functional>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "common/bank/bank_spec.h"
#include "memory_server/checkpoint.h"

namespace membank {

struct ScrubResult {
  uint64_t records = 0, bytes = 0;
  std::vector<absl::Status> damage;  // DATA_LOSS naming store and file (or block), at most kMaxDamage; `damaged` counts all
  uint64_t damaged = 0;
  bool whole = true;                 // false: `pace` or a purge stopped it
};
inline constexpr size_t kMaxDamage = 100;

// One pass. `pace` is called after every record with its size, and may sleep; false stops the pass.
ScrubResult Scrub(const CheckpointStore& checkpoints, const BankSpec& spec, const std::function<bool(uint64_t bytes)>& pace);

class Scrubber {
 public:
  // Passes follow one another, at most one per `interval`, at `bytes_per_second`. Everything given outlives it.
  Scrubber(const CheckpointStore* checkpoints, const BankSpec* spec, uint64_t bytes_per_second, absl::Duration interval);
  ~Scrubber();

 private:
  void Run() ABSL_LOCKS_EXCLUDED(mu_);
  // Keeps the age up to date while it waits; false: stop.
  bool Wait(absl::Duration time) ABSL_LOCKS_EXCLUDED(mu_);

  const CheckpointStore* const checkpoints_;
  const BankSpec* const spec_;
  const uint64_t bytes_per_second_;
  const absl::Duration interval_;
  absl::Time last_pass_;  // of the thread alone; at first the start

  absl::Mutex mu_;
  bool stopping_ ABSL_GUARDED_BY(mu_) = false;
  std::thread thread_;  // last: uses everything above
};

}  // namespace membank
