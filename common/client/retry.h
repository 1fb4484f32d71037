// Repeats a call while the other side is away: jittered exponential back-off inside a deadline, for calls that may be repeated. Any thread.
#pragma once

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/time/time.h"

namespace membank {

// Calls until the status is not UNAVAILABLE or the deadline has come; the last UNAVAILABLE then comes back with the attempts counted.
absl::Status RetryWhileUnavailable(absl::Time deadline, absl::FunctionRef<absl::Status()> call);

}  // namespace membank
