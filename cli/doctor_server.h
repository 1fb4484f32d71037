// What a real memory server on this machine does: `membank` starts the membank-memory-server that lies beside it, on loopback and with a
// bank of its own below `directory`, trains one step and more with it, and ends it. Nothing is left behind.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"

namespace membank {

struct ServerRates {
  double fetch = 0, push = 0;     // payload bytes per second, fp32
  double prepare = 0, apply = 0;  // elements per second: sum and norm; AdamW
  double checkpoint = 0;          // bytes of weights and optimizer state per second, durable
};

// About `bytes` bytes of payload each way. UNAVAILABLE quotes the server's log when it does not start.
absl::StatusOr<ServerRates> MeasureServer(const std::string& directory, uint64_t bytes);

}  // namespace membank
