// Threads for calls that may wait (a step, a disk, the other ranks), one per call, at most `limit`: gRPC has as few as two threads for all
// callbacks, and a fixed pool would run dry of threads while the call that would wake the waiting ones stands in its queue.
// Thread-safe; the destructor waits for all.
#pragma once

#include <algorithm>
#include <functional>
#include <type_traits>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"

namespace membank {

class CallThreads {
 public:
  explicit CallThreads(int limit) : limit_(limit) {}
  ~CallThreads();
  CallThreads(const CallThreads&) = delete;
  CallThreads& operator=(const CallThreads&) = delete;

  // RESOURCE_EXHAUSTED when `limit` calls run already; `work` then is not run.
  absl::Status Start(std::function<void()> work) ABSL_LOCKS_EXCLUDED(mu_);

 private:
  const int limit_;
  absl::Mutex mu_;
  int running_ ABSL_GUARDED_BY(mu_) = 0;
};

// wait(until) -> absl::Status or absl::StatusOr, which ends with DEADLINE_EXCEEDED at `until`, in slices of a second up to `deadline`: a caller
// that has gone does not hold its thread until then. CANCELLED when gone() says so.
template <typename Gone, typename Wait>
auto WaitInSlices(absl::Time deadline, const Gone& gone, const Wait& wait) -> decltype(wait(deadline)) {
  const auto code = [](const auto& result) {
    if constexpr (std::is_same_v<std::decay_t<decltype(result)>, absl::Status>) return result.code();
    else return result.status().code();
  };
  while (true) {
    if (gone()) return absl::CancelledError("the caller is gone");
    const absl::Time slice = std::min(deadline, absl::Now() + absl::Seconds(1));
    auto result = wait(slice);
    if (code(result) != absl::StatusCode::kDeadlineExceeded || slice == deadline) return result;
  }
}

}  // namespace membank
