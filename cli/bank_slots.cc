#include "cli/bank_slots.h"

#include <algorithm>
#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include "cli/command.h"
#include "cli/connect.h"
#include "common/base/status_macros.h"
#include "common/client/slot_transfer.h"
#include "common/rpc/slot_map_location.h"
#include "nlohmann/json.hpp"

namespace membank {
namespace {

struct SlotsCommand {
  std::string slot_map, output, from, to, slots;
  TlsFiles tls;
  std::vector<std::string> servers;
  double lease_seconds = 15;
  uint64_t part_bytes = 1 << 30;
  bool json = false;
};

absl::StatusOr<SlotServer> ParseServer(const std::string& text) {
  const size_t equals = text.find('=');
  if (equals == std::string::npos || equals == 0 || equals + 1 == text.size())
    return InvalidArgument("a server is given as \"{}\"; expected ID=ADDRESS, as in m0=127.0.0.1:7101", text);
  return SlotServer{text.substr(0, equals), text.substr(equals + 1)};
}

absl::StatusOr<std::vector<SlotServer>> ParseServers(const std::vector<std::string>& texts) {
  std::vector<SlotServer> servers;
  for (const std::string& text : texts) {
    ASSIGN_OR_RETURN(SlotServer server, ParseServer(text));
    servers.push_back(std::move(server));
  }
  return servers;
}

absl::StatusOr<std::unique_ptr<SlotTransfers>> Connect(const SlotsCommand& command) {
  SlotTransferOptions options;
  options.slot_map = command.slot_map;
  options.tls = command.tls;
  options.lease = absl::Seconds(command.lease_seconds);
  if (!command.json) options.report = [](const std::string& stage) {
    fmt::print("  {}\n", stage);
    fflush(stdout);
  };
  return SlotTransfers::Open(options);
}

std::string Megabytes(uint64_t bytes) { return fmt::format("{:.1f} MB", bytes / 1e6); }

// --- init, list ----------------------------------------------------------------------------------------------------------------------

absl::Status Init(const SlotsCommand& command) {
  ASSIGN_OR_RETURN(const std::vector<SlotServer> servers, ParseServers(command.servers));
  ASSIGN_OR_RETURN(const SlotMap map, SlotMap::Striped(servers));
  ASSIGN_OR_RETURN(const std::unique_ptr<SlotMapSource> source, OpenSlotMap(command.output, command.tls));
  RETURN_IF_ERROR(source->Create(map));
  fmt::print("wrote {}: {} slots striped over {} servers, epoch {}\n", command.output, kSlots, servers.size(), map.epoch());
  return absl::OkStatus();
}

absl::Status List(const SlotsCommand& command) {
  ASSIGN_OR_RETURN(const std::unique_ptr<SlotTransfers> transfers, Connect(command));
  ASSIGN_OR_RETURN(const SlotMap map, transfers->Map());
  ASSIGN_OR_RETURN(const std::vector<uint64_t> bytes, transfers->SlotBytes());
  nlohmann::json servers = nlohmann::json::array();
  uint64_t total = 0;
  for (uint64_t slot : bytes) total += slot;
  if (!command.json) fmt::print("slot map epoch {}\n", map.epoch());
  for (const SlotServer& server : map.servers()) {
    const SlotSet slots = map.SlotsOf(server.id);
    uint64_t sum = 0;
    for (uint32_t slot = 0; slot < kSlots; ++slot) sum += slots[slot] ? bytes[slot] : 0;
    servers.push_back({{"id", server.id}, {"address", server.address}, {"slots", slots.count()}, {"bytes", sum}});
    if (!command.json)
      fmt::print("{:<10} {:<24} {:>5} slots {:>12} {:>5.1f} %\n", server.id, server.address, slots.count(), Megabytes(sum),
                 total == 0 ? 0.0 : 100.0 * sum / total);
  }
  if (command.json) fmt::print("{}\n", nlohmann::json{{"epoch", map.epoch()}, {"servers", servers}}.dump());
  return absl::OkStatus();
}

// --- plan, rebalance -----------------------------------------------------------------------------------------------------------------

absl::StatusOr<std::vector<SlotTransfer>> MakePlan(const SlotsCommand& command, SlotTransfers* transfers) {
  ASSIGN_OR_RETURN(const SlotMap map, transfers->Map());
  ASSIGN_OR_RETURN(std::vector<SlotServer> targets, ParseServers(command.servers));
  if (targets.empty()) targets = map.servers();
  ASSIGN_OR_RETURN(const std::vector<uint64_t> bytes, transfers->SlotBytes());
  ASSIGN_OR_RETURN(const std::vector<SlotTransfer> whole, PlanTransfers(map, bytes, targets));
  std::vector<SlotTransfer> parts;
  for (const SlotTransfer& transfer : whole)
    for (SlotTransfer& part : SplitTransfer(transfer, bytes, command.part_bytes)) parts.push_back(std::move(part));
  return parts;
}

nlohmann::json ToJson(const SlotTransfer& transfer) {
  return {{"from", transfer.from}, {"to", transfer.to.id}, {"slots", FormatSlots(transfer.slots)}, {"bytes", transfer.bytes}};
}

absl::Status Plan(const SlotsCommand& command) {
  ASSIGN_OR_RETURN(const std::unique_ptr<SlotTransfers> transfers, Connect(command));
  ASSIGN_OR_RETURN(const std::vector<SlotTransfer> plan, MakePlan(command, transfers.get()));
  nlohmann::json json = nlohmann::json::array();
  for (const SlotTransfer& transfer : plan) {
    json.push_back(ToJson(transfer));
    if (!command.json)
      fmt::print("{} -> {}: {} slots, {}: {}\n", transfer.from, transfer.to.id, transfer.slots.count(), Megabytes(transfer.bytes),
                 FormatSlots(transfer.slots));
  }
  if (command.json) fmt::print("{}\n", json.dump());
  else if (plan.empty()) fmt::print("nothing to move: every server has its share\n");
  return absl::OkStatus();
}

absl::Status MoveOne(const SlotsCommand& command, SlotTransfers* transfers, const SlotTransfer& transfer, const std::vector<std::string>& leave) {
  if (!command.json) fmt::print("{} -> {}: {} slots\n", transfer.from, transfer.to.id, transfer.slots.count());
  ASSIGN_OR_RETURN(const SlotTransferResult result, transfers->Move(transfer, leave));
  if (command.json) {
    nlohmann::json json = ToJson(transfer);
    json["epoch"] = result.epoch;
    json["copied_bytes"] = result.bytes;
    json["seconds"] = result.seconds;
    json["fence_seconds"] = result.fence_seconds;
    fmt::print("{}\n", json.dump());
  } else {
    fmt::print("  switched: slot map epoch {}, {} copied in {:.2f} s, fenced for {:.3f} s\n", result.epoch, Megabytes(result.bytes), result.seconds,
               result.fence_seconds);
  }
  return absl::OkStatus();
}

absl::Status Rebalance(const SlotsCommand& command) {
  ASSIGN_OR_RETURN(const std::unique_ptr<SlotTransfers> transfers, Connect(command));
  ASSIGN_OR_RETURN(const SlotMap map, transfers->Map());
  ASSIGN_OR_RETURN(const std::vector<SlotServer> targets, ParseServers(command.servers));
  std::vector<std::string> leave;
  for (const SlotServer& server : map.servers()) {
    const bool stays = targets.empty() || std::any_of(targets.begin(), targets.end(), [&](const SlotServer& t) { return t.id == server.id; });
    if (!stays) leave.push_back(server.id);
  }
  ASSIGN_OR_RETURN(const std::vector<SlotTransfer> plan, MakePlan(command, transfers.get()));
  for (const SlotTransfer& transfer : plan) RETURN_IF_ERROR(MoveOne(command, transfers.get(), transfer, leave));
  if (plan.empty() && !command.json) fmt::print("nothing to move: every server has its share\n");
  return absl::OkStatus();
}

// --- move ----------------------------------------------------------------------------------------------------------------------------

absl::Status Move(const SlotsCommand& command) {
  ASSIGN_OR_RETURN(const std::unique_ptr<SlotTransfers> transfers, Connect(command));
  ASSIGN_OR_RETURN(const SlotMap map, transfers->Map());
  SlotTransfer transfer;
  transfer.from = command.from;
  if (command.to.find('=') != std::string::npos) {
    ASSIGN_OR_RETURN(transfer.to, ParseServer(command.to));
  } else {
    ASSIGN_OR_RETURN(const size_t index, map.ServerIndex(command.to));
    transfer.to = map.servers()[index];
  }
  ASSIGN_OR_RETURN(transfer.slots, ParseSlots(command.slots));
  return MoveOne(command, transfers.get(), transfer, {});
}

absl::Status Replicas(const SlotsCommand& command) {
  ASSIGN_OR_RETURN(const std::unique_ptr<SlotMapSource> source, OpenSlotMap(command.slot_map, command.tls));
  ASSIGN_OR_RETURN(const SlotMap next,
                   ChangeSlotMap(source.get(), [&](const SlotMap& map) { return map.WithReplicas(command.from, command.servers); }));
  fmt::print("{} has {} replicas, slot map epoch {}\n", command.from, command.servers.size(), next.epoch());
  return absl::OkStatus();
}

}  // namespace

void AddBankSlotsCommand(CLI::App* bank) {
  auto command = std::make_shared<SlotsCommand>();
  CLI::App* slots = bank->add_subcommand("slots", "which server holds which blocks, and moving them while everything runs");
  slots->require_subcommand(1);
  CLI::App* init = AddCommand(slots, "init", "write a slot map that stripes all blocks evenly", command, Init);
  init->add_option("--server", command->servers, "ID=ADDRESS, once per server, as m0=127.0.0.1:7101")->required();
  init->add_option("--output", command->output, fmt::format("where to make the slot map: {}", kSlotMapLocations))->required();

  CLI::App* list = AddCommand(slots, "list", "servers, their slots and the bytes in them", command, List);
  CLI::App* plan = AddCommand(slots, "plan", "what rebalance would move", command, Plan);
  CLI::App* rebalance = AddCommand(slots, "rebalance", "give every server its share of the bytes, while training and serving go on", command, Rebalance);
  for (CLI::App* app : {plan, rebalance})
    app->add_option("--server", command->servers,
                    "ID=ADDRESS, once per server that is to have slots; new ones join, missing ones leave. Default: those of the map");
  for (CLI::App* app : {plan, rebalance})
    app->add_option("--part-bytes", command->part_bytes,
                    "weights that move at once, in bytes or as 512MB; the new owner holds them with their optimizer state in RAM, beside its budget")
        ->transform(CLI::AsSizeValue(false))
        ->capture_default_str();
  CLI::App* move = AddCommand(slots, "move", "move slots from one running server to another", command, Move);
  move->add_option("--from", command->from, "id of the server that has them")->required();
  move->add_option("--to", command->to, "id of the server that gets them, or ID=ADDRESS of one that joins")->required();
  move->add_option("--slots", command->slots, "as 0-511,600")->required();
  for (CLI::App* app : {rebalance, move})
    app->add_option("--lease-seconds", command->lease_seconds, "should this command die, the servers lift a fence by themselves after so long")
        ->check(CLI::Range(2.0, 60.0))
        ->capture_default_str();
  CLI::App* replicas = AddCommand(slots, "replicas", "say which servers hold the published versions of a server, too", command, Replicas);
  replicas->add_option("--of", command->from, "id of the server")->required();
  replicas->add_option("--replica", command->servers, "address of a server started with --replica-of, once per replica; none: it has no replicas");
  for (CLI::App* app : {init, list, plan, rebalance, move, replicas}) {
    if (app != init) app->add_option("--slot-map", command->slot_map, fmt::format("slot map of servers and clients: {}", kSlotMapLocations))->required();
    AddTlsOptions(app, "the servers' and etcd's", &command->tls);
    if (app != init && app != replicas) app->add_flag("--json", command->json, "for scripts");
  }
}

}  // namespace membank
