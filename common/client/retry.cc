#include "common/client/retry.h"

#include <algorithm>
#include <random>

#include "absl/time/clock.h"
#include "common/base/status_macros.h"

namespace membank {
namespace {

constexpr absl::Duration kFirstPause = absl::Milliseconds(20);
constexpr absl::Duration kLongestPause = absl::Seconds(1);

// Between half and the whole of it, so that clients which failed together do not come back together.
absl::Duration Jittered(absl::Duration pause) {
  thread_local std::minstd_rand random(std::random_device{}());
  return pause * std::uniform_real_distribution<double>(0.5, 1.0)(random);
}

}  // namespace

absl::Status RetryWhileUnavailable(absl::Time deadline, absl::FunctionRef<absl::Status()> call) {
  absl::Duration pause = kFirstPause;
  for (int attempts = 1;; ++attempts) {
    absl::Status status = call();
    if (status.code() != absl::StatusCode::kUnavailable) return status;
    const absl::Duration wait = Jittered(pause);
    if (absl::Now() + wait >= deadline) return attempts == 1 ? status : Annotate(status, fmt::format("after {} attempts", attempts));
    absl::SleepFor(wait);
    pause = std::min(pause * 2, kLongestPause);
  }
}

}  // namespace membank
