#include "cli/checkpoint.h"

#include <algorithm>
#include <memory>
#include <string>
#include <vector>

#include "cli/checkpoint_transfer.h"
#include "cli/command.h"
#include "cli/connect.h"
#include "common/base/status_macros.h"
#include "model_worker/train/run_directory.h"
#include "nlohmann/json.hpp"

namespace membank {
namespace {

struct CheckpointCommand {
  MemoryServers servers;
  bool json = false;
  std::string id = "latest", place, run;
};

absl::Status List(const CheckpointCommand& command) {
  ASSIGN_OR_RETURN(const std::unique_ptr<MemoryClient> client, command.servers.Connect());
  ASSIGN_OR_RETURN(const std::vector<CheckpointInfo> checkpoints, client->ListCheckpoints());
  nlohmann::json json = nlohmann::json::array();
  for (const CheckpointInfo& checkpoint : checkpoints) {
    json.push_back({{"id", checkpoint.id}, {"step", checkpoint.step}, {"committed", checkpoint.committed}});
    if (!command.json) fmt::print("{:>10}  {:<9}  {}\n", checkpoint.step, checkpoint.committed ? "committed" : "prepared", checkpoint.id);
  }
  if (command.json) fmt::print("{}\n", json.dump());
  else if (checkpoints.empty()) fmt::print("no checkpoints\n");
  return absl::OkStatus();
}

absl::Status ReportDamage(const std::string& what, const std::vector<std::string>& damage, bool json) {
  if (json) fmt::print("{}\n", nlohmann::json{{"checkpoint", what}, {"damage", damage}}.dump());
  else
    for (const std::string& line : damage) fmt::print("damaged: {}\n", line);
  if (!damage.empty()) return DataLoss("{} is damaged in {} places", what, damage.size());
  if (!json) fmt::print("{} is whole\n", what);
  return absl::OkStatus();
}

absl::Status Verify(const CheckpointCommand& command) {
  ASSIGN_OR_RETURN(const std::unique_ptr<MemoryClient> client, command.servers.Connect());
  ASSIGN_OR_RETURN(const std::string id, ResolveCheckpoint(*client, command.id));
  ASSIGN_OR_RETURN(const std::unique_ptr<CheckpointClient> checkpoints, CheckpointClient::Connect(command.servers.Options()));
  ASSIGN_OR_RETURN(std::vector<std::string> damage, checkpoints->Verify(id));
  if (!command.run.empty()) {
    ASSIGN_OR_RETURN(const std::vector<std::string> beside, RunDirectory::Verify(command.run, id));
    damage.insert(damage.end(), beside.begin(), beside.end());
  }
  return ReportDamage("checkpoint " + id, damage, command.json);
}

absl::Status VerifyBackupAt(const CheckpointCommand& command) {
  ASSIGN_OR_RETURN(const std::unique_ptr<ObjectStore> store, ObjectStore::Open(command.place));
  TransferSummary summary;
  ASSIGN_OR_RETURN(const std::vector<std::string> damage, VerifyBackup(*store, &summary));
  return ReportDamage(fmt::format("backup {} of checkpoint {}", command.place, summary.id), damage, command.json);
}

absl::Status Restore(const CheckpointCommand& command) {
  ASSIGN_OR_RETURN(const std::unique_ptr<MemoryClient> client, command.servers.Connect());
  ASSIGN_OR_RETURN(const std::string id, ResolveCheckpoint(*client, command.id));
  RETURN_IF_ERROR(client->RestoreCheckpoint(id));
  fmt::print("checkpoint {} is the head; training goes on from there with a new epoch\n", id);
  return absl::OkStatus();
}

absl::Status Delete(const CheckpointCommand& command) {
  ASSIGN_OR_RETURN(const std::unique_ptr<MemoryClient> client, command.servers.Connect());
  RETURN_IF_ERROR(client->DeleteCheckpoint(command.id));
  fmt::print("deleted checkpoint {}\n", command.id);
  return absl::OkStatus();
}

void Report(const char* verb, const TransferSummary& summary, const std::string& place, bool json) {
  if (json) {
    fmt::print("{}\n", nlohmann::json{{"id", summary.id}, {"step", summary.history.step}, {"blocks", summary.blocks}, {"bytes", summary.bytes},
                                      {"parts", summary.parts}, {"place", place}}.dump());
  } else {
    fmt::print("{} checkpoint {} at step {}: {} blocks, {:.1f} MB in {} parts, {}\n", verb, summary.id, summary.history.step, summary.blocks,
               summary.bytes / 1e6, summary.parts, place);
  }
}

absl::Status Export(const CheckpointCommand& command) {
  ASSIGN_OR_RETURN(const std::unique_ptr<ObjectStore> store, ObjectStore::Open(command.place));
  ASSIGN_OR_RETURN(const std::unique_ptr<MemoryClient> client, command.servers.Connect());
  ASSIGN_OR_RETURN(const std::string id, ResolveCheckpoint(*client, command.id));
  ASSIGN_OR_RETURN(const std::unique_ptr<CheckpointClient> checkpoints, CheckpointClient::Connect(command.servers.Options()));
  ASSIGN_OR_RETURN(const TransferSummary summary, ExportCheckpoint(*checkpoints, client->spec(), id, *store));
  Report("exported", summary, command.place, command.json);
  return absl::OkStatus();
}

absl::Status Import(const CheckpointCommand& command) {
  ASSIGN_OR_RETURN(const std::unique_ptr<ObjectStore> store, ObjectStore::Open(command.place));
  ASSIGN_OR_RETURN(const std::unique_ptr<MemoryClient> client, command.servers.Connect());
  ASSIGN_OR_RETURN(const std::unique_ptr<CheckpointClient> checkpoints, CheckpointClient::Connect(command.servers.Options()));
  ASSIGN_OR_RETURN(const TransferSummary summary, ImportCheckpoint(*store, client->spec(), command.id, *checkpoints));
  RETURN_IF_ERROR(client->RestoreCheckpoint(summary.id));
  Report("imported", summary, command.place, command.json);
  return absl::OkStatus();
}

}  // namespace

void AddCheckpointCommand(CLI::App& app) {
  const auto command = std::make_shared<CheckpointCommand>(), import_command = std::make_shared<CheckpointCommand>();
  import_command->id.clear();
  CLI::App* checkpoint = app.add_subcommand("checkpoint", "list, verify, restore, delete a bank's checkpoints; copy one out and in");
  checkpoint->require_subcommand(1);
  CLI::App* list = AddCommand(checkpoint, "list", "checkpoints that every server has, oldest first", command, List);
  CLI::App* verify = AddCommand(checkpoint, "verify", "read every byte on every server against its checksums and the manifests", command, Verify);
  CLI::App* restore = AddCommand(checkpoint, "restore", "make a checkpoint the head of every server; what came after it is given up", command, Restore);
  CLI::App* remove = AddCommand(checkpoint, "delete", "remove a checkpoint from every server; never the last committed one", command, Delete);
  CLI::App* out = AddCommand(checkpoint, "export", "copy a committed checkpoint to a directory or to S3", command, Export);
  CLI::App* in = AddCommand(checkpoint, "import", "bring a copy onto these servers, however many there are, and make it their head", import_command, Import);
  CLI::App* verify_backup = AddCommand(checkpoint, "verify-backup", "read every byte of a copy against its manifest", command, VerifyBackupAt);
  for (CLI::App* online : {list, verify, restore, remove, out}) command->servers.AddOptions(online);
  import_command->servers.AddOptions(in);
  for (CLI::App* one : {verify, restore, out})
    one->add_option("--id", command->id, "id of the checkpoint, or latest: the newest that is committed on every server")->capture_default_str();
  remove->add_option("--id", command->id, "id of the checkpoint")->required();
  out->add_option("--to", command->place, "a directory, or s3://bucket/prefix with the usual AWS_* variables")->required();
  in->add_option("--from", import_command->place, "what `membank checkpoint export --to` wrote")->required();
  in->add_option("--id", import_command->id, "id on these servers (default: the one it had, which `membank train` looks for)");
  verify->add_option("--run", command->run, "also the files that `membank train --output RUN` keeps beside it: a co-trained anchor, its optimizer, int8 error feedback");
  verify_backup->add_option("--from", command->place, "what `membank checkpoint export --to` wrote")->required();
  for (CLI::App* one : {list, verify, out, verify_backup}) one->add_flag("--json", command->json, "for scripts");
  in->add_flag("--json", import_command->json, "for scripts");
}

}  // namespace membank
