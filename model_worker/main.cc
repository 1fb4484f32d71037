// membank-worker: one anchor and one version of a bank behind the WorkerService.
#include <filesystem>

#include "CLI/CLI.hpp"
#include "common/base/log.h"
#include "common/base/malloc_tuning.h"
#include "common/base/status_macros.h"
#include "common/base/thread_tuning.h"
#include "common/client/access_client.h"
#include "common/client/memory_client.h"
#include "common/config/config.h"
#include "common/rpc/service_process.h"
#include "model_worker/memory/access_watch.h"
#include "model_worker/options.h"
#include "model_worker/serve/engine.h"
#include "model_worker/worker_service.h"

namespace membank {
namespace {

MemoryClientOptions ToMemoryOptions(const WorkerOptions& options) {
  MemoryClientOptions client;
  client.slot_map_path = options.slot_map;
  client.servers = options.memory_servers;
  client.tls = options.service.tls;
  return client;
}

// Null without memory.
absl::StatusOr<std::unique_ptr<MemoryClient>> ConnectMemory(const WorkerOptions& options) {
  if (options.no_memory) return std::unique_ptr<MemoryClient>();
  return MemoryClient::Connect(ToMemoryOptions(options));
}

// Null without memory.
absl::StatusOr<std::unique_ptr<AccessWatch>> WatchAccess(const WorkerOptions& options, const MemoryClient* memory) {
  if (memory == nullptr) return std::unique_ptr<AccessWatch>();
  ASSIGN_OR_RETURN(std::shared_ptr<AccessClient> client, AccessClient::Create(ToMemoryOptions(options)));
  return std::make_unique<AccessWatch>([client](std::chrono::milliseconds timeout) { return client->Read(timeout); }, memory->spec().fan_out,
                                       absl::Milliseconds(options.block_lease_ms));
}

absl::StatusOr<std::string> BankVersion(const WorkerOptions& options, MemoryClient* memory) {
  if (memory == nullptr) return std::string();
  ASSIGN_OR_RETURN(const BankStatus status, memory->GetStatus());
  std::vector<std::string> names;
  for (const auto& version : status.versions) names.push_back(version.name);
  return ChooseBankVersion(options.bank_version, names);
}

EngineOptions ToEngineOptions(const WorkerOptions& options, std::string bank_version, const AccessWatch* access) {
  EngineOptions engine;
  engine.context = options.context;
  engine.max_running = options.max_running;
  engine.prefill_tokens = options.prefill_tokens;
  engine.max_queued_tokens = options.max_queued_tokens;
  engine.kv_cache_tokens = options.kv_cache_tokens;
  engine.threads = options.threads;
  engine.bank_version = std::move(bank_version);
  engine.block_cache_bytes = options.block_cache_bytes;
  engine.access = access;
  return engine;
}

std::string ModelName(const WorkerOptions& options) {
  if (!options.model_name.empty()) return options.model_name;
  const std::filesystem::path path(options.anchor);
  return path.has_filename() ? path.filename().string() : path.parent_path().filename().string();
}

absl::Status Run(const WorkerOptions& options) {
  ASSIGN_OR_RETURN(const std::unique_ptr<ServiceProcess> process, ServiceProcess::Start(options.service));
  ASSIGN_OR_RETURN(const std::unique_ptr<Tokenizer> tokenizer, LoadTokenizer(options.tokenizer.empty() ? options.anchor : options.tokenizer));
  ASSIGN_OR_RETURN(const std::unique_ptr<MemoryClient> memory, ConnectMemory(options));
  ASSIGN_OR_RETURN(const std::string version, BankVersion(options, memory.get()));
  ASSIGN_OR_RETURN(const std::unique_ptr<AccessWatch> access, WatchAccess(options, memory.get()));
  const DType dtype = options.dtype == "bf16" ? DType::kBF16 : DType::kF32;
  ASSIGN_OR_RETURN(const std::unique_ptr<Engine> engine,
                   LoadEngine(options.anchor, dtype, memory.get(), tokenizer.get(), ToEngineOptions(options, version, access.get())));

  WorkerService service(engine.get(), tokenizer.get(), ModelName(options));
  ServiceWork work;
  work.services = {&service};
  work.about = fmt::format("anchor {} ({}, {}), {}", ModelName(options), engine->facts().anchor_fingerprint, options.dtype,
                           memory == nullptr ? "no memory" : fmt::format("bank '{}' version {}", memory->spec().bank_id, version.empty() ? "head" : version));
  work.drain = [&](absl::Time deadline) {
    const uint32_t left = engine->Drain(deadline);
    if (left > 0) LOG_WARN("{} sequences were not done within {} ms and are cancelled", left, options.service.drain_timeout_ms);
  };
  return process->ServeUntilStopped(work);
}

}  // namespace
}  // namespace membank

int main(int argc, char** argv) {
  membank::TuneThreads(argv);
  membank::TuneMalloc();
  membank::WorkerOptions options;
  CLI::App app("membank-worker: generates and scores with one anchor and the memory of each request", "membank-worker");
  membank::BindOptions(app, &options);
  if (auto code = membank::config::Parse(app, argc, argv, [&] { return membank::Validate(options); })) return *code;
  membank::InitLogging("worker", options.service.log_level);
  const absl::Status status = membank::Run(options);
  if (!status.ok()) LOG_ERROR("{}", status.ToString());
  return status.ok() ? 0 : 1;
}
