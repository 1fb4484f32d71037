#include "cli/bank_access.h"

#include <chrono>
#include <memory>
#include <string>
#include <vector>

#include "cli/command.h"
#include "cli/connect.h"
#include "common/base/status_macros.h"
#include "common/client/access_client.h"

namespace membank {
namespace {

struct AccessCommand {
  MemoryServers servers;
  std::string prefix, owner;
  std::vector<std::string> readers;
  bool json = false;
};

absl::StatusOr<std::unique_ptr<AccessClient>> Connect(const AccessCommand& command) { return AccessClient::Create(command.servers.Options()); }

// Changes the rule of command.prefix on all servers and says what became of it.
absl::Status ChangePrefix(const AccessCommand& command, const std::function<void(AccessTable*, TreePrefix)>& change, const std::string& done) {
  ASSIGN_OR_RETURN(const std::unique_ptr<AccessClient> client, Connect(command));
  ASSIGN_OR_RETURN(const AccessTable table, client->Change([&](const BankSpec& spec, AccessTable* next) -> absl::Status {
    ASSIGN_OR_RETURN(const TreePrefix prefix, ParsePrefix(command.prefix, spec.fan_out, spec.depth()));
    change(next, prefix);
    return absl::OkStatus();
  }));
  fmt::print("{} {}; access epoch {} is in force on every server\n", done, command.prefix, table.epoch);
  return absl::OkStatus();
}

absl::Status SetOwner(const AccessCommand& command) {
  return ChangePrefix(
      command, [&](AccessTable* table, TreePrefix prefix) { table->SetOwner(prefix, command.owner, {command.readers.begin(), command.readers.end()}); },
      command.owner.empty() ? "nobody owns" : fmt::format("{} owns", command.owner));
}

absl::Status Block(const AccessCommand& command) {
  return ChangePrefix(command, [](AccessTable* table, TreePrefix prefix) { table->SetBlocked(prefix, true); }, "blocked");
}

absl::Status Unblock(const AccessCommand& command) {
  return ChangePrefix(command, [](AccessTable* table, TreePrefix prefix) { table->SetBlocked(prefix, false); }, "unblocked");
}

absl::Status Purge(const AccessCommand& command) {
  RETURN_IF_ERROR(Block(command));
  MemoryClientOptions options = command.servers.Options();
  options.call_timeout = std::chrono::hours(1);  // the servers read all their checkpoints
  ASSIGN_OR_RETURN(const std::unique_ptr<AccessClient> client, AccessClient::Create(options));
  ASSIGN_OR_RETURN(const PurgeSummary summary, client->Purge(command.prefix));
  fmt::print("purged {}: {} trained blocks; {} checkpoints and versions are free of it; it stays blocked\n", command.prefix, summary.blocks,
             summary.cuts);
  return absl::OkStatus();
}

absl::Status ListOwners(const AccessCommand& command) {
  ASSIGN_OR_RETURN(const std::unique_ptr<AccessClient> client, Connect(command));
  ASSIGN_OR_RETURN(const BankSpec spec, client->Spec());
  ASSIGN_OR_RETURN(const AccessView view, client->Read(std::chrono::seconds(10)));
  const AccessTable& table = view.table;
  if (command.json) {
    fmt::print("{}\n", table.ToJson());
    return absl::OkStatus();
  }
  fmt::print("access epoch {}, {} rules\n", table.epoch, table.rules.size());
  for (const auto& [prefix, rule] : table.rules) {
    fmt::print("{:<12} {:<9} {}{}\n", ToString(prefix, spec.fan_out), rule.blocked ? "blocked" : "", rule.owner.empty() ? "no owner" : rule.owner,
               rule.readers.empty() ? "" : fmt::format(", read by {}", fmt::join(rule.readers, ", ")));
  }
  return absl::OkStatus();
}

CLI::App* Add(CLI::App* parent, const char* name, const char* help, const std::shared_ptr<AccessCommand>& command,
              absl::Status (*run)(const AccessCommand&)) {
  CLI::App* app = AddCommand(parent, name, help, command, run);
  command->servers.AddOptions(app);
  return app;
}

}  // namespace

void AddBankAccessCommands(CLI::App* bank) {
  auto command = std::make_shared<AccessCommand>();
  const char* prefix_help = "prefix of the tree, as 3.5; root = the whole bank";
  CLI::App* owner = bank->add_subcommand("owner", "who owns and reads which prefix of the tree");
  owner->require_subcommand(1);
  CLI::App* set = Add(owner, "set", "give a prefix an owner and readers; both replace what was there", command, SetOwner);
  set->add_option("prefix", command->prefix, prefix_help)->required();
  set->add_option("--owner", command->owner, "subject alternative name (DNS or URI) of the owner's certificate; empty: nobody")->required();
  set->add_option("--reader", command->readers, "a name that may read beside the owner; may be repeated");
  CLI::App* list = Add(owner, "list", "the access table", command, ListOwners);
  list->add_flag("--json", command->json, "for scripts");
  for (auto [name, help, run] : {std::tuple{"block", "serve a prefix to nobody any more; answers are computed with zeros in its place", &Block},
                                 std::tuple{"unblock", "serve a blocked prefix again", &Unblock},
                                 std::tuple{"purge", "block a prefix and remove its bytes from memory, checkpoints and versions", &Purge}}) {
    Add(bank, name, help, command, run)->add_option("prefix", command->prefix, prefix_help)->required();
  }
}

}  // namespace membank
