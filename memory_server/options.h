// The settings of a memory server: one row each in options.cc, with unit and consequence. Facts of the bank are no settings: they come from
// --bank-spec once and live in the data directory from then on.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "common/rpc/service_options.h"

namespace CLI {
class App;
}

namespace membank {

struct MemoryServerOptions {
  ServiceOptions service = {.listen = "127.0.0.1:7101", .admin_listen = "127.0.0.1:7191"};
  std::string data_dir;
  std::string bank_spec;
  std::string slot_map;
  std::string server_id = "m0";
  uint64_t memory_budget_bytes = 0;
  std::string replica_of;
  uint64_t free_space_watermark_bytes = 256ull << 20;
  uint64_t read_version_cache_bytes = 1ull << 30;
  uint64_t generated_cache_bytes = 256ull << 20;
  uint64_t push_budget_bytes = 8ull << 30;
  uint64_t scrub_bytes_per_second = 16ull << 20;
  uint64_t scrub_interval_s = 86400;
  uint32_t keep_checkpoints = 2;
  std::string durability = "checkpoint";
  int threads = 0;
  int max_waiting_calls = 256;
  std::vector<std::string> administrators, trainers;
};

void BindOptions(CLI::App& app, MemoryServerOptions* options);
// What one row cannot check; INVALID_ARGUMENT names the settings.
absl::Status Validate(const MemoryServerOptions& options);

}  // namespace membank
