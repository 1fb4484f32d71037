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

absl::Status RetryWhileUnavailable(absl::Time deadline, absl::FunctionRef<absl::Status(bool wait)> call) {
  absl::Status away;
  absl::Duration pause = kFirstPause;
  for (int attempts = 0;; ++attempts) {
    absl::Status status = call(/*wait=*/attempts > 0);
    if (status.code() == absl::StatusCode::kUnavailable) {
      away = status;
    } else if (status.code() != absl::StatusCode::kDeadlineExceeded || away.ok()) {
      return status;
    }
    const absl::Duration wait = Jittered(pause);
    if (absl::Now() + wait >= deadline) return attempts == 0 ? away : Annotate(away, fmt::format("still away after {} attempts", attempts + 1));
    absl::SleepFor(wait);
    pause = std::min(pause * 2, kLongestPause);
  }
}

}  // namespace membank
