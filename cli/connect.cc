#include "cli/connect.h"

#include "common/base/status_macros.h"
#include "common/rpc/slot_map_location.h"

namespace membank {

void AddTlsOptions(CLI::App* command, std::string_view whose, TlsFiles* tls) {
  command->add_option("--tls-certificate", tls->certificate, "PEM certificate that says who you are; its names decide what you may do");
  command->add_option("--tls-key", tls->key, "PEM private key of the certificate");
  command->add_option("--tls-authority", tls->authority, fmt::format("PEM authorities of {} certificates; empty: no TLS", whose));
}

void MemoryServers::AddOptions(CLI::App* command, bool required) {
  auto* group = command->add_option_group("memory servers", "where the bank is");
  const auto exists = [](const std::string& location) { return IsEtcdLocation(location) ? "" : CLI::ExistingFile(location); };
  group->add_option("--slot-map", slot_map, fmt::format("slot map, as `membank bank slots init` makes it: {}", kSlotMapLocations))->check(exists);
  group->add_option("--memory-servers", servers, "addresses host:port,host:port: a striped slot map in this order")->delimiter(',');
  group->require_option(required ? 1 : 0, 1);
  AddTlsOptions(command, "the servers'", &tls);
}

MemoryClientOptions MemoryServers::Options() const {
  MemoryClientOptions options;
  options.slot_map_path = slot_map;
  options.servers = servers;
  options.tls = tls;
  return options;
}

absl::StatusOr<std::unique_ptr<MemoryClient>> MemoryServers::Connect() const { return MemoryClient::Connect(Options()); }

absl::StatusOr<std::string> ResolveCheckpoint(MemoryClient& client, const std::string& id) {
  if (id != "latest") return id;
  ASSIGN_OR_RETURN(const std::vector<CheckpointInfo> checkpoints, client.ListCheckpoints());
  for (auto it = checkpoints.rbegin(); it != checkpoints.rend(); ++it)
    if (it->committed) return it->id;
  return NotFound("the bank has no checkpoint that is committed on every server; `membank train` writes them");
}

}  // namespace membank
