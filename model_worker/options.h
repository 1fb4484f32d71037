// The settings of a worker: one row each in options.cc, with unit and consequence. Facts of the anchor and of the bank are no settings:
// they are read from the anchor's files and from the memory servers.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "common/rpc/service_options.h"

namespace CLI {
class App;
}

namespace membank {

struct WorkerOptions {
  std::string anchor;
  std::string tokenizer;
  std::string chat_template = "auto";
  std::string model_name;
  ServiceOptions service = {.listen = "127.0.0.1:7201", .admin_listen = "127.0.0.1:7291", .memory_quota_bytes = 256ull << 20};
  std::string slot_map;
  std::vector<std::string> memory_servers;
  std::string bank_version = "latest";
  std::string stacked_slot_map;
  std::vector<std::string> stacked_memory_servers;
  std::string stacked_bank_version = "latest";
  bool no_memory = false;
  std::string dtype = "fp32";
  uint32_t threads = 0;
  uint32_t context = 0;
  uint32_t max_running = 32;
  uint32_t prefill_tokens = 512;
  uint64_t max_queued_tokens = 262144;
  uint64_t kv_cache_tokens = 65536;
  uint64_t block_cache_bytes = 2ull << 30;
  uint32_t resident_levels = 0;
  uint32_t block_lease_ms = 5000;
};

void BindOptions(CLI::App& app, WorkerOptions* options);
// What one row cannot check; INVALID_ARGUMENT names the settings.
absl::Status Validate(const WorkerOptions& options);

bool HasStackedBank(const WorkerOptions& options);

// The version of the bank to serve: "head" is the live head (empty), "latest" the greatest published name in natural order ("v9" before "v10"),
// anything else a published version. FAILED_PRECONDITION or NOT_FOUND lists what is published; `setting`: its name in errors.
absl::StatusOr<std::string> ChooseBankVersion(const std::string& setting, const std::string& wanted, const std::vector<std::string>& published);

}  // namespace membank
