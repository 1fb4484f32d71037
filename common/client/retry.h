// Repeats a call while the other side is away: jittered exponential back-off inside a deadline, for calls that may be repeated. Any thread.
#pragma once

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/time/time.h"

namespace membank {

// Calls until the status is not UNAVAILABLE or the deadline has come; the last UNAVAILABLE then comes back with the attempts counted. From the
// second attempt on `wait` asks the call to wait for the connection: gRPC's connecting makes progress only while a call waits in it.
absl::Status RetryWhileUnavailable(absl::Time deadline, absl::FunctionRef<absl::Status(bool wait)> call);

}  // namespace membank
