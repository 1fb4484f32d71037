// The router's settings: one row each with default, unit and meaning. Filled by common/config in main, then read only.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "CLI/CLI.hpp"
#include "absl/status/status.h"

namespace membank {

struct RouterOptions {
  std::string listen = "127.0.0.1:7100";
  std::string http_listen = "127.0.0.1:8080";
  std::string admin_listen = "127.0.0.1:7180";
  std::vector<std::string> worker;
  std::string tree;
  std::string embedder;
  uint64_t request_timeout_ms = 600000;
  uint64_t drain_timeout_ms = 10000;
  uint64_t worker_poll_ms = 500;
  int http_threads = 128;
  uint64_t http_max_body_bytes = 8 << 20;
  std::string tls_certificate, tls_key, tls_authority;
  std::string ready_file;
  std::string log_level = "info";
};

void BindOptions(CLI::App& app, RouterOptions* options);

// What one row cannot check: settings that need each other.
absl::Status Validate(const RouterOptions& options);

}  // namespace membank
