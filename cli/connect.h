// The two ways a sub-command names the memory servers.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "CLI/CLI.hpp"
#include "absl/status/statusor.h"
#include "common/client/memory_client.h"

namespace membank {

// --tls-certificate, --tls-key, --tls-authority; `whose`: certificates that the authorities vouch for ("the servers'").
void AddTlsOptions(CLI::App* command, std::string_view whose, TlsFiles* tls);

struct MemoryServers {
  std::string slot_map;
  std::vector<std::string> servers;

  TlsFiles tls;

  // --slot-map FILE or etcd://... | --memory-servers a,b. Exactly one must be given; not `required`: at most one. And AddTlsOptions().
  void AddOptions(CLI::App* command, bool required = true);
  bool given() const { return !slot_map.empty() || !servers.empty(); }
  MemoryClientOptions Options() const;
  absl::StatusOr<std::unique_ptr<MemoryClient>> Connect() const;
};

// A checkpoint's id: as given, or for "latest" the one made last of those that are committed on every server. NOT_FOUND: none is.
absl::StatusOr<std::string> ResolveCheckpoint(MemoryClient& client, const std::string& id);

}  // namespace membank
