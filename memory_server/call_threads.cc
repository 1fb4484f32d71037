#include "memory_server/call_threads.h"

#include <thread>

#include "common/base/status_macros.h"

namespace membank {

CallThreads::~CallThreads() {
  absl::MutexLock lock(&mu_);
  mu_.Await(absl::Condition(+[](int* running) { return *running == 0; }, &running_));
}

absl::Status CallThreads::Start(std::function<void()> work) {
  {
    absl::MutexLock lock(&mu_);
    if (running_ >= limit_) return ResourceExhausted("{} calls are waiting or working already, the limit; try again later", running_);
    ++running_;
  }
  std::thread([this, work = std::move(work)]() mutable {
    work();
    work = nullptr;  // what it holds goes before the count says that it is gone
    absl::MutexLock lock(&mu_);
    --running_;
  }).detach();
  return absl::OkStatus();
}

}  // namespace membank
