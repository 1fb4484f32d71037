// What every call leaves behind in the metrics: its latency and its outcome. Make one where the call starts, tell it the outcome once.
#pragma once

#include <chrono>
#include <string>

#include "absl/status/status.h"
#include "common/base/metrics.h"

namespace membank {

class RpcTimer {
 public:
  explicit RpcTimer(std::string rpc) : rpc_(std::move(rpc)), start_(std::chrono::steady_clock::now()) {}

  void Done(const absl::Status& status) const {
    const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - start_;
    GetLatency("membank_memory_rpc_seconds", "Time from the arrival of a call to its end", {{"rpc", rpc_}}).Observe(elapsed.count());
    GetCounter("membank_memory_rpcs_total", "Calls ended, by outcome",
               {{"rpc", rpc_}, {"code", absl::StatusCodeToString(status.code())}}).Increment();
  }

 private:
  const std::string rpc_;
  const std::chrono::steady_clock::time_point start_;
};

}  // namespace membank
