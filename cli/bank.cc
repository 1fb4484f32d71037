#include "cli/bank.h"

#include <algorithm>
#include <memory>
#include <string>
#include <vector>

#include "cli/bank_access.h"
#include "cli/bank_slots.h"
#include "cli/bank_use.h"
#include "cli/command.h"
#include "cli/connect.h"
#include "common/bank/cluster_tree.h"
#include "common/bank/memory_layers.h"
#include "common/base/file.h"
#include "common/base/json.h"
#include "common/base/status_macros.h"
#include "common/rpc/slot_map_location.h"
#include "model_worker/train/anchor_facts.h"
#include "nlohmann/json.hpp"

namespace membank {
namespace {

struct BankCommand {
  MemoryServers servers;
  bool json = false;
  // create
  std::string anchor, tree, dtype = "bf16", bank_id = "bank", memory_type = "ffn", memory_layers = "all";
  std::vector<uint32_t> widths;
  uint64_t seed = 0;
  std::string output;
  // publish
  std::string checkpoint = "latest", version, publish_dtype = "bank";
};

std::string Megabytes(uint64_t bytes) { return fmt::format("{:.1f} MB", bytes / 1e6); }

// --- create --------------------------------------------------------------------------------------------------------------------------

nlohmann::json SizesOf(const BankSpec& spec, uint64_t anchor_parameters) {
  const uint64_t element = DTypeBytes(spec.dtype);
  return {{"fetched_parameters", spec.FetchedElements()}, {"fetched_bytes", spec.FetchedElements() * element},
          {"bank_parameters", spec.BankElements()}, {"bank_bytes", spec.BankElements() * element}, {"anchor_parameters", anchor_parameters}};
}

void PrintSizes(const BankSpec& spec, uint64_t anchor_parameters) {
  const uint64_t element = DTypeBytes(spec.dtype);
  fmt::print("bank {}: {} memory, k = {}, widths", spec.bank_id, MemoryTypeName(spec.type), spec.fan_out);
  for (const uint32_t width : spec.widths) fmt::print(" {}", width);
  fmt::print(", {} layers of width {}, {}\n", spec.layers, spec.hidden, DTypeName(spec.dtype));
  if (!spec.memory_layers.empty()) fmt::print("  memory in layers  {}\n", MemoryLayersText(spec.memory_layers));
  fmt::print("  one unit of r     {} parameters\n", spec.UnitElements());
  for (uint32_t level = 1; level <= spec.depth(); ++level)
    fmt::print("  level {:<2}          {} blocks of {}\n", level, spec.width(level) == 0 ? 0 : ClusterCount(spec.fan_out, level),
               Megabytes(spec.BlockBytes(level)));
  fmt::print("  fetched per path  {} parameters ({}), {:.1f} % of the anchor's {}\n", spec.FetchedElements(),
             Megabytes(spec.FetchedElements() * element), 100.0 * spec.FetchedElements() / anchor_parameters, anchor_parameters);
  fmt::print("  whole bank        {} parameters ({}); untouched blocks take no room\n", spec.BankElements(),
             Megabytes(spec.BankElements() * element));
  fmt::print("  hash              {}\n", spec.Hash());
}

// As in a spec, or with hyphens.
absl::StatusOr<MemoryType> ParseMemoryTypeWord(std::string word) {
  std::replace(word.begin(), word.end(), '-', '_');
  return ParseMemoryType(word);
}

absl::Status Create(const BankCommand& command) {
  ASSIGN_OR_RETURN(const ClusterTree tree, ClusterTree::Load(command.tree));
  if (command.widths.size() != tree.depth())
    return InvalidArgument("--widths has {} numbers; the tree {} has {} levels: give one width per level (0 = level unused)",
                           command.widths.size(), command.tree, tree.depth());
  ASSIGN_OR_RETURN(const AnchorFacts anchor, ReadAnchorFacts(command.anchor));
  BankSpec spec;
  spec.bank_id = command.bank_id;
  spec.fan_out = tree.fan_out();
  spec.widths = command.widths;
  ASSIGN_OR_RETURN(spec.type, ParseMemoryTypeWord(command.memory_type));
  spec.SetAnchor(anchor.shape);
  RETURN_IF_ERROR(spec.CheckFits(anchor.shape));
  ASSIGN_OR_RETURN(spec.memory_layers, ParseMemoryLayers(command.memory_layers, spec.layers));
  ASSIGN_OR_RETURN(spec.dtype, ParseDType(command.dtype));
  spec.seed = command.seed;
  spec.anchor_fingerprint = anchor.fingerprint;
  spec.tree_fingerprint = tree.Fingerprint();
  RETURN_IF_ERROR(spec.Validate());
  RETURN_IF_ERROR(WriteFileAtomic(command.output, spec.ToJson() + "\n"));
  if (command.json) {
    nlohmann::json json = SizesOf(spec, anchor.parameters);
    json["spec"] = *ParseJson(spec.ToJson());
    json["hash"] = spec.Hash();
    fmt::print("{}\n", json.dump());
    return absl::OkStatus();
  }
  PrintSizes(spec, anchor.parameters);
  fmt::print("wrote {}\n", command.output);
  return absl::OkStatus();
}

// --- status, publish -----------------------------------------------------------------------------------------------------------------

absl::Status ShowStatus(const BankCommand& command) {
  ASSIGN_OR_RETURN(const std::unique_ptr<MemoryClient> client, command.servers.Connect());
  ASSIGN_OR_RETURN(const BankStatus status, client->GetStatus());
  if (command.json) {
    nlohmann::json versions = nlohmann::json::array();
    for (const BankVersion& version : status.versions)
      versions.push_back({{"name", version.name}, {"dtype", PayloadTypeName(status.spec, version.payload)}});
    const nlohmann::json json = {{"spec", *ParseJson(status.spec.ToJson())}, {"hash", status.spec.Hash()},
                                 {"slot_map_epoch", status.slot_map_epoch}, {"head_step", status.head_step}, {"run_id", status.run_id},
                                 {"run_epoch", status.run_epoch}, {"versions", versions}, {"touched_blocks", status.touched_blocks},
                                 {"resident_bytes", status.resident_bytes}};
    fmt::print("{}\n", json.dump());
    return absl::OkStatus();
  }
  std::string versions;
  for (const BankVersion& version : status.versions)
    versions += fmt::format("{}{} ({})", versions.empty() ? "" : ", ", version.name, PayloadTypeName(status.spec, version.payload));
  fmt::print("bank            {} (hash {})\n", status.spec.bank_id, status.spec.Hash());
  if (command.servers.slot_map.empty()) {
    for (const std::string& address : command.servers.servers) fmt::print("server          {}\n", address);
  } else {
    ASSIGN_OR_RETURN(const std::unique_ptr<SlotMapSource> source, OpenSlotMap(command.servers.slot_map, command.servers.tls));
    ASSIGN_OR_RETURN(const SlotMap map, source->Load());
    for (const SlotServer& server : map.servers()) fmt::print("server          {} at {}\n", server.id, server.address);
  }
  fmt::print("slot map epoch  {}\n", status.slot_map_epoch);
  fmt::print("head step       {}\n", status.head_step);
  fmt::print("last run        {}\n", status.run_id.empty() ? "none" : fmt::format("{}, epoch {}", status.run_id, status.run_epoch));
  fmt::print("versions        {}\n", versions.empty() ? "none published" : versions);
  fmt::print("touched blocks  {}\n", status.touched_blocks);
  fmt::print("resident        {}\n", Megabytes(status.resident_bytes));
  return absl::OkStatus();
}

absl::Status Publish(const BankCommand& command) {
  const PayloadType payload = command.publish_dtype == "int8" ? PayloadType::kI8Rows : PayloadType::kBank;
  MemoryClientOptions options = command.servers.Options();
  if (payload != PayloadType::kBank) options.call_timeout = std::chrono::hours(1);  // every block is read and written
  ASSIGN_OR_RETURN(const std::unique_ptr<MemoryClient> client, MemoryClient::Connect(options));
  ASSIGN_OR_RETURN(const std::string id, ResolveCheckpoint(*client, command.checkpoint));
  RETURN_IF_ERROR(client->Publish(id, command.version, payload));
  const std::string_view dtype = PayloadTypeName(client->spec(), payload);
  if (command.json) fmt::print("{}\n", nlohmann::json{{"checkpoint", id}, {"version", command.version}, {"dtype", dtype}}.dump());
  else fmt::print("published {} ({}) from checkpoint {}\n", command.version, dtype, id);
  return absl::OkStatus();
}

// --- options -------------------------------------------------------------------------------------------------------------------------

void AddCreate(CLI::App* bank, const std::shared_ptr<BankCommand>& command) {
  CLI::App* create = AddCommand(bank, "create", "write the spec of a new bank beside an anchor and a cluster tree", command, Create);
  create->add_option("--anchor", command->anchor, "Hugging Face directory or GGUF file")->required()->check(CLI::ExistingPath);
  create->add_option("--tree", command->tree, "cluster tree; decides fan-out and depth")->required()->check(CLI::ExistingFile);
  create->add_option("--widths", command->widths, "r per level, as 256,64,16,0: inner units of ffn memory, rank of lora, keys of kv; 0 = level unused")
      ->required()->delimiter(',');
  create->add_option("--memory-type", command->memory_type, "ffn, lora-qk, lora-vo, lora-ffn or kv")->capture_default_str();
  create->add_option("--memory-layers", command->memory_layers, "layers with memory: all, early or late (half of them), or numbers from 0 as 8,9,10")
      ->capture_default_str();
  create->add_option("--dtype", command->dtype, "of fetched weights: bf16 or fp32")->capture_default_str();
  create->add_option("--seed", command->seed, "of the initial values")->capture_default_str();
  create->add_option("--bank-id", command->bank_id, "name of the bank")->capture_default_str();
  create->add_option("--output", command->output, "spec file to write, for membank-memory-server --bank-spec")->required();
  create->add_flag("--json", command->json, "print spec, hash and sizes as one JSON object");
}

}  // namespace

void AddBankCommand(CLI::App& app) {
  auto command = std::make_shared<BankCommand>();
  CLI::App* bank = app.add_subcommand("bank", "create a bank, see what it holds, publish it");
  bank->require_subcommand(1);
  AddCreate(bank, command);

  AddBankAccessCommands(bank);
  AddBankSlotsCommand(bank);
  AddBankUseCommand(bank);
  CLI::App* status = AddCommand(bank, "status", "spec, servers, head step, versions, bytes", command, ShowStatus);
  CLI::App* publish = AddCommand(bank, "publish", "turn a committed checkpoint into an immutable version for serving", command, Publish);
  publish->add_option("--checkpoint", command->checkpoint, "id of a committed checkpoint, or latest")->capture_default_str();
  publish->add_option("--version", command->version, "name of the version")->required();
  publish->add_option("--dtype", command->publish_dtype,
                      "of served weights: bank (as they are; no bytes are copied) or int8 with a scale per row (a quarter of fp32; every block is written anew)")
      ->check(CLI::IsMember({"bank", "int8"}))
      ->capture_default_str();
  for (CLI::App* online : {status, publish}) {
    command->servers.AddOptions(online);
    online->add_flag("--json", command->json, "for scripts");
  }
}

}  // namespace membank
