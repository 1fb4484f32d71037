// membank-memory-server: one shard of a bank behind the MemoryService.
#include <sys/resource.h>

#include <thread>

#include "CLI/CLI.hpp"
#include "common/base/file.h"
#include "common/base/log.h"
#include "common/base/malloc_tuning.h"
#include "common/base/status_macros.h"
#include "common/config/config.h"
#include "common/rpc/service_process.h"
#include "common/rpc/slot_map_location.h"
#include "memory_server/memory_service.h"
#include "memory_server/options.h"
#include "memory_server/patient_file_system.h"
#include "memory_server/scrub.h"

namespace membank {
namespace {

// The spec file when given, else what the data directory already holds.
absl::StatusOr<BankSpec> LoadSpec(const MemoryServerOptions& options) {
  const std::string stored = options.data_dir + "/bank.json";
  const std::string& path = options.bank_spec.empty() ? stored : options.bank_spec;
  auto json = ReadFile(path);
  if (!json.ok() && options.bank_spec.empty()) {
    return FailedPrecondition("{} holds no bank yet and --bank-spec names none; give the bank's facts by --bank-spec FILE", options.data_dir);
  }
  RETURN_IF_ERROR(json.status());
  auto spec = BankSpec::FromJson(*json);
  if (!spec.ok()) return Annotate(spec.status(), path);
  return spec;
}

// The stores hold a file per large block, and a published version has all of them open.
void RaiseFileLimit() {
  rlimit limit;
  if (::getrlimit(RLIMIT_NOFILE, &limit) != 0) return;
  limit.rlim_cur = limit.rlim_max;
  ::setrlimit(RLIMIT_NOFILE, &limit);
}

absl::Status Run(const MemoryServerOptions& options) {
  RaiseFileLimit();
  ASSIGN_OR_RETURN(const std::unique_ptr<ServiceProcess> process, ServiceProcess::Start(options.service));
  ASSIGN_OR_RETURN(const BankSpec spec, LoadSpec(options));
  std::unique_ptr<SlotMapSource> slot_map_source;
  absl::StatusOr<SlotMap> slot_map = SlotMap::Striped({{options.server_id, options.service.listen}});
  if (!options.slot_map.empty()) {
    ASSIGN_OR_RETURN(slot_map_source, OpenSlotMap(options.slot_map, options.service.tls));
    slot_map = slot_map_source->Load();
  }
  RETURN_IF_ERROR(slot_map.status());
  const int threads = options.threads > 0 ? options.threads : std::max(2u, std::thread::hardware_concurrency());
  ShardOptions shard_options;
  shard_options.data_directory = options.data_dir;
  shard_options.server_id = options.server_id;
  shard_options.memory_budget_bytes = options.memory_budget_bytes;
  shard_options.replica_of = options.replica_of;
  shard_options.generated_cache_bytes = options.generated_cache_bytes;
  shard_options.version_cache_bytes = options.read_version_cache_bytes;
  shard_options.push_budget_bytes = options.push_budget_bytes;
  shard_options.min_free_bytes = options.free_space_watermark_bytes;
  shard_options.keep_checkpoints = options.keep_checkpoints;
  shard_options.durability = options.durability == "step" ? Durability::kStep : Durability::kCheckpoint;
  shard_options.optimizer_threads = options.threads;
  shard_options.access.administrators = {options.administrators.begin(), options.administrators.end()};
  shard_options.access.trainers = {options.trainers.begin(), options.trainers.end()};
  ASSIGN_OR_RETURN(const std::unique_ptr<Shard> shard, Shard::Open(spec, *slot_map, shard_options));

  std::unique_ptr<Scrubber> scrubber;
  if (options.scrub_bytes_per_second > 0) {
    scrubber = std::make_unique<Scrubber>(&shard->checkpoints(), &shard->spec(), options.scrub_bytes_per_second,
                                          absl::Seconds(options.scrub_interval_s));
  }
  MemoryService service(shard.get(), threads, options.max_waiting_calls);
  if (slot_map_source) service.FollowSlotMap(std::move(slot_map_source), options.service.tls);
  ServiceWork work;
  work.services = {&service};
  work.about = fmt::format("bank '{}' ({}), server {} of slot map epoch {}, head step {}", spec.bank_id, shard->spec_hash(), options.server_id,
                           slot_map->epoch(), shard->Status().head_step);
  work.drain = [&](absl::Time) {  // calls that wait for a step or for room on the disk end now; reads go on
    StopWaitingForRoom();
    shard->Shutdown();
  };
  return process->ServeUntilStopped(work);
}

}  // namespace
}  // namespace membank

int main(int argc, char** argv) {
  membank::TuneMalloc();
  membank::MemoryServerOptions options;
  CLI::App app("membank-memory-server: one shard of a memory bank", "membank-memory-server");
  membank::BindOptions(app, &options);
  if (auto code = membank::config::Parse(app, argc, argv, [&] { return membank::Validate(options); })) return *code;
  membank::InitLogging("memory-server", options.service.log_level);
  const absl::Status status = membank::Run(options);
  if (!status.ok()) LOG_ERROR("{}", status.ToString());
  return status.ok() ? 0 : 1;
}
