// membank-worker: one anchor and one version of a bank, or of two stacked on each other, behind the WorkerService.
#include <filesystem>
#include <optional>

#include "CLI/CLI.hpp"
#include "common/base/log.h"
#include "common/base/malloc_tuning.h"
#include "common/base/status_macros.h"
#include "common/base/thread_tuning.h"
#include "common/client/access_client.h"
#include "common/client/memory_client.h"
#include "common/config/config.h"
#include "common/rpc/service_process.h"
#include "common/text/chat_template.h"
#include "model_worker/memory/access_watch.h"
#include "model_worker/options.h"
#include "model_worker/serve/engine.h"
#include "model_worker/worker_service.h"

namespace membank {
namespace {

// One of the worker's banks. The engine that serves it goes first.
struct Bank {
  std::unique_ptr<MemoryClient> memory;
  std::string version;
  std::unique_ptr<AccessWatch> access;
};

absl::StatusOr<std::string> BankVersion(const std::string& setting, const std::string& wanted, MemoryClient* memory) {
  ASSIGN_OR_RETURN(const BankStatus status, memory->GetStatus());
  std::vector<std::string> names;
  for (const auto& version : status.versions) names.push_back(version.name);
  return ChooseBankVersion(setting, wanted, names);
}

// `prefix` of the bank's settings: "--" or "--stacked-".
absl::StatusOr<Bank> ConnectBank(const std::string& prefix, const MemoryClientOptions& servers, const std::string& version, uint32_t lease_ms) {
  Bank bank;
  ASSIGN_OR_RETURN(bank.memory, MemoryClient::Connect(servers));
  ASSIGN_OR_RETURN(bank.version, BankVersion(prefix + "bank-version", version, bank.memory.get()));
  ASSIGN_OR_RETURN(std::shared_ptr<AccessClient> client, AccessClient::Create(servers));
  bank.access = std::make_unique<AccessWatch>([client](std::chrono::milliseconds timeout) { return client->Read(timeout); },
                                              bank.memory->spec().fan_out, absl::Milliseconds(lease_ms));
  return bank;
}

// The first, then the one stacked on it; none without memory.
absl::StatusOr<std::vector<Bank>> ConnectBanks(const WorkerOptions& options) {
  std::vector<Bank> banks;
  if (options.no_memory) return banks;
  MemoryClientOptions servers;
  servers.tls = options.service.tls;
  servers.slot_map_path = options.slot_map;
  servers.servers = options.memory_servers;
  ASSIGN_OR_RETURN(banks.emplace_back(), ConnectBank("--", servers, options.bank_version, options.block_lease_ms));
  if (!HasStackedBank(options)) return banks;
  servers.slot_map_path = options.stacked_slot_map;
  servers.servers = options.stacked_memory_servers;
  ASSIGN_OR_RETURN(banks.emplace_back(), ConnectBank("--stacked-", servers, options.stacked_bank_version, options.block_lease_ms));
  return banks;
}

EngineOptions ToEngineOptions(const WorkerOptions& options) {
  EngineOptions engine;
  engine.context = options.context;
  engine.max_running = options.max_running;
  engine.prefill_tokens = options.prefill_tokens;
  engine.max_queued_tokens = options.max_queued_tokens;
  engine.kv_cache_tokens = options.kv_cache_tokens;
  engine.threads = options.threads;
  engine.block_cache_bytes = options.block_cache_bytes;
  engine.resident_levels = options.resident_levels;
  return engine;
}

std::string About(const std::vector<Bank>& banks) {
  std::string about;
  for (const Bank& bank : banks) {
    about += fmt::format("{}bank '{}' version {}", about.empty() ? "" : ", stacked ", bank.memory->spec().bank_id,
                         bank.version.empty() ? "head" : bank.version);
  }
  return about.empty() ? "no memory" : about;
}

std::string ModelName(const WorkerOptions& options) {
  if (!options.model_name.empty()) return options.model_name;
  const std::filesystem::path path(options.anchor);
  return path.has_filename() ? path.filename().string() : path.parent_path().filename().string();
}

// Nothing, with a warning, where the anchor's own template is none of ours.
absl::StatusOr<std::optional<ChatTemplate>> FindChatTemplate(const WorkerOptions& options) {
  if (options.chat_template != "auto") return ChatTemplate::ByName(options.chat_template);
  const std::string& path = options.tokenizer.empty() ? options.anchor : options.tokenizer;
  ASSIGN_OR_RETURN(std::optional<ChatTemplate> chat, LoadChatTemplate(path));
  if (!chat.has_value()) {
    LOG_WARN("{}: its chat template is none of {}; conversations are refused until --chat-template names one", path, ChatTemplate::kNames);
  }
  return chat;
}

absl::Status Run(const WorkerOptions& options) {
  ASSIGN_OR_RETURN(const std::unique_ptr<ServiceProcess> process, ServiceProcess::Start(options.service));
  ASSIGN_OR_RETURN(const std::unique_ptr<Tokenizer> tokenizer, LoadTokenizer(options.tokenizer.empty() ? options.anchor : options.tokenizer));
  ASSIGN_OR_RETURN(const std::optional<ChatTemplate> chat, FindChatTemplate(options));
  ASSIGN_OR_RETURN(const std::vector<Bank> banks, ConnectBanks(options));
  std::vector<ServedBank> served;
  for (const Bank& bank : banks) served.push_back({bank.memory.get(), bank.version, bank.access.get()});
  const DType dtype = options.dtype == "bf16" ? DType::kBF16 : DType::kF32;
  ASSIGN_OR_RETURN(const std::unique_ptr<Engine> engine, LoadEngine(options.anchor, dtype, served, tokenizer.get(), ToEngineOptions(options)));

  WorkerService service(engine.get(), tokenizer.get(), ModelName(options), chat);
  ServiceWork work;
  work.services = {&service};
  work.about = fmt::format("anchor {} ({}, {}), {}", ModelName(options), engine->facts().anchor_fingerprint, options.dtype, About(banks));
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
