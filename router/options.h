// The router's settings: one row each with default, unit and meaning. Filled by common/config in main, then read only.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "common/rpc/service_options.h"

namespace membank {

struct RouterOptions {
  ServiceOptions service = {.listen = "127.0.0.1:7100", .admin_listen = "127.0.0.1:7180", .memory_quota_bytes = 256ull << 20};
  std::string http_listen = "127.0.0.1:8080";
  std::vector<std::string> worker;
  std::vector<std::string> tree;
  std::string embedder;
  uint64_t request_timeout_ms = 600000;
  uint64_t worker_poll_ms = 500;
  int http_threads = 128;
  uint64_t http_max_body_bytes = 8 << 20;
};

void BindOptions(CLI::App& app, RouterOptions* options);

// What one row cannot check: settings that need each other.
absl::Status Validate(const RouterOptions& options);

}  // namespace membank
