#include "router/options.h"

#include "common/base/status_macros.h"

namespace membank {

void BindOptions(CLI::App& app, RouterOptions* o) {
  app.add_option("--listen", o->listen, "gRPC address, host:port; port 0 = any free one");
  app.add_option("--http-listen", o->http_listen, "HTTP address of the OpenAI-compatible API, host:port; empty = no HTTP");
  app.add_option("--admin-listen", o->admin_listen, "HTTP address of /livez, /readyz and /metrics, host:port; empty = none");
  app.add_option("--worker", o->worker, "Address of a model worker, host:port; repeat for more");
  app.add_option("--tree", o->tree, "Cluster tree (safetensors); without it only explicit paths, generic and no memory are served");
  app.add_option("--embedder", o->embedder, "Hugging Face directory of the tree's embedder (all-MiniLM-L6-v2)");
  app.add_option("--request-timeout-ms", o->request_timeout_ms, "Deadline of a request whose client sets none [ms]")
      ->check(CLI::Range(uint64_t{1}, uint64_t{86400000}));
  app.add_option("--drain-timeout-ms", o->drain_timeout_ms, "How long running requests may go on after SIGTERM [ms]")
      ->check(CLI::Range(uint64_t{0}, uint64_t{3600000}));
  app.add_option("--worker-poll-ms", o->worker_poll_ms, "Between two looks at a worker's status [ms]")
      ->check(CLI::Range(uint64_t{10}, uint64_t{60000}));
  app.add_option("--http-threads", o->http_threads, "HTTP requests served at once; further ones wait, then get 503")->check(CLI::Range(1, 4096));
  app.add_option("--http-max-body-bytes", o->http_max_body_bytes, "Largest HTTP request body; a larger one gets 413 [bytes]")
      ->check(CLI::Range(uint64_t{1} << 10, uint64_t{1} << 30));
  app.add_option("--tls-certificate", o->tls_certificate, "PEM chain for the gRPC port and towards workers; empty = plain text");
  app.add_option("--tls-key", o->tls_key, "PEM private key of --tls-certificate");
  app.add_option("--tls-authority", o->tls_authority, "PEM of the authorities that peers' certificates must come from");
  app.add_option("--ready-file", o->ready_file, "Written when serving: JSON with the bound addresses and the process id");
  app.add_option("--log-level", o->log_level, "trace, debug, info, warn, error or off")
      ->check(CLI::IsMember({"trace", "debug", "info", "warn", "error", "off"}));
}

absl::Status Validate(const RouterOptions& o) {
  if (o.worker.empty()) return InvalidArgument("no worker: give the address of at least one with --worker host:port");
  if (o.tree.empty() != o.embedder.empty()) {
    return InvalidArgument("--tree ('{}') and --embedder ('{}') go together: the tree's centroids live in its embedder's space", o.tree, o.embedder);
  }
  return absl::OkStatus();
}

}  // namespace membank
