#include "cli/connect.h"

namespace membank {

void MemoryServers::AddOptions(CLI::App* command) {
  auto* group = command->add_option_group("memory servers", "where the bank is");
  group->add_option("--slot-map", slot_map, "slot map file, as `membank bank slots init` writes it")->check(CLI::ExistingFile);
  group->add_option("--memory-servers", servers, "addresses host:port,host:port: a striped slot map in this order")->delimiter(',');
  group->require_option(1);
}

absl::StatusOr<std::unique_ptr<MemoryClient>> MemoryServers::Connect() const {
  MemoryClientOptions options;
  options.slot_map_path = slot_map;
  options.servers = servers;
  return MemoryClient::Connect(options);
}

}  // namespace membank
