// Threads for calls that may wait (a step, a disk, the other ranks), one per call, at most `limit`: gRPC has as few as two threads for all
// callbacks, and a fixed pool would run dry of threads while the call that would wake the waiting ones stands in its queue.
// Thread-safe; the destructor waits for all.
#pragma once

#include <functional>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"

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

}  // namespace membank
