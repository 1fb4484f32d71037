// The settings that every service has: where it listens, its transport's memory, TLS, how it starts and stops. One declaration for all
// three; a service's own options hold one of these, with its own default ports, and add their rows to it.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "common/rpc/tls_files.h"

namespace CLI {
class App;
}

namespace membank {

struct ServiceOptions {
  std::string listen;
  std::string admin_listen;
  uint64_t memory_quota_bytes = 1ull << 30;
  uint64_t drain_timeout_ms = 10000;
  TlsFiles tls;
  std::string ready_file;
  std::string log_level = "info";
};

void BindOptions(CLI::App& app, ServiceOptions* options);
// What one row cannot check; INVALID_ARGUMENT names the settings.
absl::Status Validate(const ServiceOptions& options);

}  // namespace membank
