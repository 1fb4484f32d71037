// What measured rates mean for a bank: how long each part of a training step and of a block miss takes, which part is the longest, and
// whether the bank fits. Arithmetic only; cli/doctor_probes.h measures.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "common/bank/bank_spec.h"

namespace membank {

struct MachineRates {              // of this machine; bytes per second unless said
  double disk_write = 0;           // sequential, with the fdatasync at its end
  double disk_read = 0;            // sequential, past the page cache
  double disk_sync_seconds = 0;    // one small write made durable
  double loopback = 0;             // raw TCP, one connection
  double crc32c = 0;               // one thread
  double memory_stream = 0;        // all cores: 4 arrays read, 3 written
  double fetch = 0, push = 0;      // payload bytes through a real memory server and client
  double prepare = 0, apply = 0;   // elements per second: sum and norm; AdamW
  double checkpoint = 0;           // bytes of payload and optimizer state per second
  uint64_t memory_bytes = 0, disk_free_bytes = 0;
};

struct DoctorPlan {
  uint32_t batch_sequences = 1024;  // of one training step, over all ranks
  uint32_t servers = 1;             // memory servers like the one measured, each on a machine of its own
  uint32_t checkpoint_every = 100;  // steps
};

// Blocks of a level that `sequences` independent paths touch, on average: n (1 - (1 - 1/n)^sequences).
double ExpectedDistinctBlocks(uint32_t clusters, uint32_t sequences);

struct Duration {
  std::string name;      // "fetch", ...
  double seconds = 0;
  std::string how;       // the arithmetic
};

struct DoctorReport {
  std::vector<Duration> step;         // parts of a training step at the memory servers
  std::vector<Duration> miss;         // one block of each level fetched while a query waits
  std::vector<std::string> findings;  // in words, the worst first
};

DoctorReport Examine(const BankSpec& spec, const MachineRates& rates, const DoctorPlan& plan);

}  // namespace membank
