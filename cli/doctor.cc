#include "cli/doctor.h"

#include <memory>

#include "cli/command.h"
#include "cli/doctor_plan.h"
#include "cli/doctor_probes.h"
#include "cli/doctor_server.h"
#include "common/base/file.h"
#include "common/base/json.h"
#include "common/base/status_macros.h"
#include "model_worker/train/anchor_facts.h"
#include "nlohmann/json.hpp"

namespace membank {
namespace {

struct DoctorCommand {
  std::string bank_spec, anchor, dtype = "bf16", directory = ".";
  uint32_t fan_out = 0, layers = 0, hidden = 0;
  std::vector<uint32_t> widths;
  DoctorPlan plan;
  uint64_t megabytes = 512;
  bool json = false;
};

absl::StatusOr<BankSpec> SpecOf(const DoctorCommand& command) {
  const bool described = command.fan_out > 0 || !command.widths.empty() || command.layers > 0 || command.hidden > 0 || !command.anchor.empty();
  const bool sized = !command.anchor.empty() != (command.layers > 0 && command.hidden > 0);
  if (command.bank_spec.empty() ? !sized || command.fan_out == 0 || command.widths.empty() : described) {
    return InvalidArgument("which bank? give either --bank-spec, or --fan-out and --widths with --anchor or with --layers and --hidden");
  }
  if (!command.bank_spec.empty()) {
    ASSIGN_OR_RETURN(const std::string json, ReadFile(command.bank_spec));
    const absl::StatusOr<BankSpec> spec = BankSpec::FromJson(json);
    return spec.ok() ? spec : Annotate(spec.status(), command.bank_spec);
  }
  BankSpec spec;
  spec.bank_id = "planned";
  spec.fan_out = command.fan_out;
  spec.widths = command.widths;
  spec.layers = command.layers;
  spec.hidden = command.hidden;
  spec.anchor_fingerprint = spec.tree_fingerprint = "none";
  ASSIGN_OR_RETURN(spec.dtype, ParseDType(command.dtype));
  if (!command.anchor.empty()) {
    ASSIGN_OR_RETURN(const AnchorFacts anchor, ReadAnchorFacts(command.anchor));
    spec.SetAnchor(anchor.shape);
  }
  RETURN_IF_ERROR(spec.Validate());
  return spec;
}

absl::StatusOr<MachineRates> Measure(const DoctorCommand& command) {
  const uint64_t bytes = command.megabytes << 20;
  const auto tell = [&](const char* what) {
    if (!command.json) fmt::print("measuring {} ...\n", what), std::fflush(stdout);
  };
  MachineRates rates;
  tell("the disk");
  ASSIGN_OR_RETURN(const DiskRates disk, MeasureDisk(command.directory, bytes));
  tell("loopback, checksums, memory");
  ASSIGN_OR_RETURN(rates.loopback, MeasureLoopback(4 * bytes));
  rates.crc32c = MeasureCrc32c(4 * bytes);
  rates.memory_stream = MeasureMemoryStream(bytes);
  tell("a memory server");
  ASSIGN_OR_RETURN(const ServerRates server, MeasureServer(command.directory, bytes));
  rates.disk_write = disk.write;
  rates.disk_read = disk.read;
  rates.disk_sync_seconds = disk.sync_seconds;
  rates.disk_free_bytes = disk.free_bytes;
  rates.fetch = server.fetch;
  rates.push = server.push;
  rates.prepare = server.prepare;
  rates.apply = server.apply;
  rates.checkpoint = server.checkpoint;
  rates.memory_bytes = PhysicalMemoryBytes();
  return rates;
}

nlohmann::json ToJson(const std::vector<Duration>& parts) {
  nlohmann::json json = nlohmann::json::array();
  for (const Duration& part : parts) json.push_back({{"name", part.name}, {"seconds", part.seconds}, {"how", part.how}});
  return json;
}

void PrintJson(const BankSpec& spec, const MachineRates& rates, const DoctorReport& report) {
  const nlohmann::json figures = {
      {"disk_write", rates.disk_write}, {"disk_read", rates.disk_read}, {"disk_sync_seconds", rates.disk_sync_seconds}, {"loopback", rates.loopback},
      {"crc32c", rates.crc32c}, {"memory_stream", rates.memory_stream}, {"fetch", rates.fetch}, {"push", rates.push}, {"prepare", rates.prepare},
      {"apply", rates.apply}, {"checkpoint", rates.checkpoint}, {"memory_bytes", rates.memory_bytes}, {"disk_free_bytes", rates.disk_free_bytes}};
  fmt::print("{}\n", nlohmann::json{{"spec", *ParseJson(spec.ToJson())},
                                    {"rates", figures},
                                    {"step", ToJson(report.step)},
                                    {"miss", ToJson(report.miss)},
                                    {"findings", report.findings}}
                         .dump());
}

void PrintText(const BankSpec& spec, const MachineRates& rates, const DoctorPlan& plan, const DoctorReport& report) {
  const auto rate = [](const char* what, double bytes) { fmt::print("  {:<34}{:>9.2f} GB/s\n", what, bytes / 1e9); };
  fmt::print("\nthis machine\n");
  rate("disk, write with fdatasync", rates.disk_write);
  rate("disk, read", rates.disk_read);
  fmt::print("  {:<34}{:>9.2f} ms\n", "disk, one durable write", rates.disk_sync_seconds * 1e3);
  rate("loopback, raw TCP", rates.loopback);
  rate("CRC32C, one thread", rates.crc32c);
  rate("memory, 4 arrays read, 3 written", rates.memory_stream);
  fmt::print("a memory server on it\n");
  rate("fetch", rates.fetch);
  rate("push", rates.push);
  fmt::print("  {:<34}{:>9.2f} G elements/s\n", "prepare (sum of ranks, norm)", rates.prepare / 1e9);
  fmt::print("  {:<34}{:>9.2f} G elements/s\n", "apply (AdamW)", rates.apply / 1e9);
  rate("checkpoint", rates.checkpoint);
  fmt::print("\nbank {}, a step of {} sequences on {} server{}\n", spec.bank_id, plan.batch_sequences, plan.servers, plan.servers == 1 ? "" : "s");
  for (const Duration& part : report.step) fmt::print("  {:<22}{:>10.1f} ms   {}\n", part.name, part.seconds * 1e3, part.how);
  fmt::print("a block that a query waits for\n");
  for (const Duration& part : report.miss) fmt::print("  {:<22}{:>10.1f} ms   {}\n", part.name, part.seconds * 1e3, part.how);
  fmt::print("\n");
  for (const std::string& finding : report.findings) fmt::print("{}\n", finding);
}

absl::Status Run(const DoctorCommand& command) {
  ASSIGN_OR_RETURN(const BankSpec spec, SpecOf(command));
  ASSIGN_OR_RETURN(const MachineRates rates, Measure(command));
  const DoctorReport report = Examine(spec, rates, command.plan);
  if (command.json) PrintJson(spec, rates, report);
  else PrintText(spec, rates, command.plan, report);
  return absl::OkStatus();
}

}  // namespace

void AddDoctorCommand(CLI::App& app) {
  auto command = std::make_shared<DoctorCommand>();
  CLI::App* doctor = app.add_subcommand("doctor", "measure this machine and say what will limit a bank on it");
  doctor->add_option("--bank-spec", command->bank_spec, "spec file of the bank; or describe one:");
  doctor->add_option("--anchor", command->anchor, "Hugging Face directory or GGUF file: layers and hidden size");
  doctor->add_option("--fan-out", command->fan_out, "children of a cluster (k)");
  doctor->add_option("--widths", command->widths, "inner units r per level, as 256,64,16")->delimiter(',');
  doctor->add_option("--layers", command->layers, "layers, when there is no --anchor");
  doctor->add_option("--hidden", command->hidden, "hidden size, when there is no --anchor");
  doctor->add_option("--dtype", command->dtype, "of fetched weights: bf16 or fp32")->capture_default_str();
  doctor->add_option("--batch-sequences", command->plan.batch_sequences, "sequences of a training step, all ranks together")
      ->check(CLI::Range(1, 1 << 24))->capture_default_str();
  doctor->add_option("--servers", command->plan.servers, "memory servers, each on a machine like this one")->check(CLI::Range(1, 1024))->capture_default_str();
  doctor->add_option("--checkpoint-every", command->plan.checkpoint_every, "steps between checkpoints")->check(CLI::Range(1, 1 << 30))->capture_default_str();
  doctor->add_option("--directory", command->directory, "on the disk that the memory server will use; nothing is left there")->capture_default_str();
  doctor->add_option("--megabytes", command->megabytes, "size of each measurement [MiB]")->check(CLI::Range(1, 1 << 16))->capture_default_str();
  doctor->add_flag("--json", command->json, "figures and findings as one JSON object");
  SetAction(doctor, [command] { return Run(*command); });
}

}  // namespace membank
