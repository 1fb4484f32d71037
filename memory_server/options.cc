#include "memory_server/options.h"

#include "CLI/CLI.hpp"
#include "common/base/status_macros.h"

namespace membank {

void BindOptions(CLI::App& app, MemoryServerOptions* o) {
  BindOptions(app, &o->service);
  app.add_option("--data-dir", o->data_dir, "Directory of this shard's checkpoints and versions; created when missing");
  app.add_option("--bank-spec", o->bank_spec, "JSON file with the bank's facts; needed when the data directory is empty, compared otherwise");
  app.add_option("--slot-map", o->slot_map, "File, or etcd://HOST:PORT[,HOST:PORT...]/KEY (etcds:// with TLS), that says which server has which slots; empty: this server has all");
  app.add_option("--server-id", o->server_id, "Name of this server in the slot map");
  app.add_option("--memory-budget", o->memory_budget_bytes,
                 "RAM for weights and optimizer state of trained blocks, in bytes or as 16GB; the rest spills to --data-dir; 0: no bound")
      ->transform(CLI::AsSizeValue(false));
  app.add_option("--replica-of", o->replica_of, "Server of the slot map whose published versions this one copies and serves; empty: no replica");
  app.add_option("--free-space-watermark-bytes", o->free_space_watermark_bytes,
                 "Free bytes of the disk below which pushes and checkpoints are refused; serving goes on");
  app.add_option("--read-version-cache-bytes", o->read_version_cache_bytes, "Bytes of RAM for payloads of published versions");
  app.add_option("--generated-cache-bytes", o->generated_cache_bytes, "Bytes of RAM for payloads of untouched blocks after they were generated");
  app.add_option("--push-budget-bytes", o->push_budget_bytes, "Bytes of gradients held for steps not applied yet; above, pushes are refused");
  app.add_option("--scrub-bytes-per-second", o->scrub_bytes_per_second,
                 "Bytes per second of checkpoints and versions that are read in the background to find damage; 0: none");
  app.add_option("--scrub-interval-s", o->scrub_interval_s, "Seconds from the beginning of one scrub to the next")
      ->check(CLI::Range(uint64_t{1}, uint64_t{31536000}));
  app.add_option("--keep-checkpoints", o->keep_checkpoints, "Committed checkpoints to keep where the trainer does not say; older ones are removed at commit")
      ->check(CLI::Range(1, 1000));
  app.add_option("--durability", o->durability,
                 "checkpoint: a crash goes back to the last committed checkpoint; step: every step is on disk before it is acknowledged, at the "
                 "cost of writing its gradients")
      ->check(CLI::IsMember({"checkpoint", "step"}));
  app.add_option("--threads", o->threads, "Threads for the optimizer and for reading blocks; 0: one per core")->check(CLI::Range(0, 1024));
  app.add_option("--max-waiting-calls", o->max_waiting_calls, "Calls that may wait for a step or work on one at once; more are refused")
      ->check(CLI::Range(1, 4096));
  app.add_option("--administrators", o->administrators, "Names (DNS or URI) of client certificates that may administer; empty: everybody")
      ->delimiter(',');
  app.add_option("--trainers", o->trainers, "Names of client certificates that may train and checkpoint, beside the administrators; empty: everybody")
      ->delimiter(',');
}

absl::Status Validate(const MemoryServerOptions& options) {
  RETURN_IF_ERROR(Validate(options.service));
  if (options.data_dir.empty()) return InvalidArgument("--data-dir is empty; give the directory of this shard's checkpoints and versions");
  if (options.server_id.empty()) return InvalidArgument("--server-id is empty; give the name of this server in the slot map");
  if (!options.replica_of.empty() && (options.slot_map.empty() || options.replica_of == options.server_id)) {
    return InvalidArgument("--replica-of {} needs --slot-map, to find that server, and another --server-id than it has", options.replica_of);
  }
  if (options.service.tls.authority.empty() && !(options.administrators.empty() && options.trainers.empty())) {
    return InvalidArgument("--administrators and --trainers name client certificates, but without --tls-authority no client shows one");
  }
  return absl::OkStatus();
}

}  // namespace membank
