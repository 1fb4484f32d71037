// Short measurements of this machine, each the floor under something a memory server does. Bytes per second. Each uses about `bytes` bytes
// and a second or so; errors name what could not be done.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"

namespace membank {

struct DiskRates {
  double write = 0, read = 0;   // sequential; the write with its fdatasync, the read past the page cache
  double sync_seconds = 0;      // one 4 KiB write made durable
  uint64_t free_bytes = 0;
};
// In a file below `directory` that is gone afterwards.
absl::StatusOr<DiskRates> MeasureDisk(const std::string& directory, uint64_t bytes);

// One TCP connection over loopback, reading thread against writing thread.
absl::StatusOr<double> MeasureLoopback(uint64_t bytes);

// One thread.
double MeasureCrc32c(uint64_t bytes);

// All cores: the optimizer's pattern without its arithmetic, 4 arrays read and 3 written.
double MeasureMemoryStream(uint64_t bytes);

uint64_t PhysicalMemoryBytes();

}  // namespace membank
