#include "cli/bank_use.h"

#include <algorithm>
#include <memory>
#include <string>
#include <vector>

#include "cli/command.h"
#include "cli/connect.h"
#include "common/base/status_macros.h"
#include "common/client/router_client.h"
#include "common/client/version_switch.h"
#include "nlohmann/json.hpp"

namespace membank {
namespace {

constexpr const char* kHead = "head";  // how the live head is called on command lines

struct UseCommand {
  std::string version, bank, router;
  std::vector<std::string> workers;
  TlsFiles tls;
  bool json = false;
};

std::string NameOf(const std::optional<std::string>& version) {
  if (!version.has_value()) return "unknown";
  return version->empty() ? kHead : *version;
}

void Print(const VersionSwitch& result, const std::string& version) {
  size_t width = 7;
  for (const WorkerVersion& worker : result.workers) width = std::max(width, worker.address.size() + 2);
  fmt::print("{:<{}}{:<14}  {}\n", "WORKER", width, "BEFORE", "NOW");
  for (const WorkerVersion& worker : result.workers)
    fmt::print("{:<{}}{:<14}  {}\n", worker.address, width, NameOf(worker.before), NameOf(worker.now));
  if (!result.status.ok()) return;
  fmt::print("{} workers use {}, changed in {:.1f} ms\n", result.workers.size(), version, absl::ToDoubleMilliseconds(result.took));
}

void PrintJson(const VersionSwitch& result, const std::string& version) {
  nlohmann::json workers = nlohmann::json::array();
  for (const WorkerVersion& worker : result.workers) {
    workers.push_back({{"address", worker.address}, {"before", NameOf(worker.before)}, {"now", NameOf(worker.now)},
                       {"error", std::string(worker.status.message())}});
  }
  const nlohmann::json json = {{"version", version}, {"changed", result.status.ok()}, {"milliseconds", absl::ToDoubleMilliseconds(result.took)},
                               {"workers", workers}};
  fmt::print("{}\n", json.dump());
}

absl::Status Use(const UseCommand& command) {
  VersionSwitchOptions options;
  options.workers = command.workers;
  if (!command.router.empty()) {
    ASSIGN_OR_RETURN(options.workers, WorkersOf(command.router, command.tls, std::chrono::seconds(10)));
  }
  if (command.version != kHead) options.version = command.version;
  options.bank = command.bank;
  options.tls = command.tls;
  ASSIGN_OR_RETURN(const VersionSwitch result, SwitchBankVersion(options));
  if (command.json) PrintJson(result, command.version);
  else Print(result, command.version);
  return result.status;
}

}  // namespace

void AddBankUseCommand(CLI::App* bank) {
  auto command = std::make_shared<UseCommand>();
  CLI::App* use = AddCommand(bank, "use", "change workers to another published version, newer or older, while they serve", command, Use);
  use->add_option("VERSION", command->version, "a version that `membank bank publish` made; head = the live head")->required();
  use->add_option("--bank", command->bank, "name of the bank, where banks are stacked; the workers' first one when not given");
  auto* group = use->add_option_group("workers", "which workers");
  group->add_option("--router", command->router, "gRPC address of a router: all its workers");
  group->add_option("--worker", command->workers, "gRPC address of a worker, once per worker");
  group->require_option(1);
  AddTlsOptions(use, "the workers' and the router's", &command->tls);
  use->add_flag("--json", command->json, "for scripts");
}

}  // namespace membank
