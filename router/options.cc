#include "router/options.h"

#include "CLI/CLI.hpp"
#include "common/base/status_macros.h"

namespace membank {

void BindOptions(CLI::App& app, RouterOptions* o) {
  BindOptions(app, &o->service);
  app.add_option("--http-listen", o->http_listen, "HTTP address of the OpenAI-compatible API, host:port; empty = no HTTP");
  app.add_option("--worker", o->worker, "Address of a model worker, host:port; repeat for more");
  app.add_option("--tree", o->tree, "Cluster tree (safetensors); repeat for stacked banks with trees of their own. Without it only explicit paths, "
                                    "generic and no memory are served");
  app.add_option("--embedder", o->embedder, "Hugging Face directory of the trees' embedder (all-MiniLM-L6-v2)");
  app.add_option("--request-timeout-ms", o->request_timeout_ms, "Deadline of a request whose client sets none [ms]")
      ->check(CLI::Range(uint64_t{1}, uint64_t{86400000}));
  app.add_option("--worker-poll-ms", o->worker_poll_ms, "Between two looks at a worker's status [ms]")
      ->check(CLI::Range(uint64_t{10}, uint64_t{60000}));
  app.add_option("--http-threads", o->http_threads, "HTTP requests served at once; further ones wait, then get 503")->check(CLI::Range(1, 4096));
  app.add_option("--http-max-body-bytes", o->http_max_body_bytes, "Largest HTTP request body; a larger one gets 413 [bytes]")
      ->check(CLI::Range(uint64_t{1} << 10, uint64_t{1} << 30));
}

absl::Status Validate(const RouterOptions& o) {
  RETURN_IF_ERROR(Validate(o.service));
  if (o.worker.empty()) return InvalidArgument("no worker: give the address of at least one with --worker host:port");
  if (o.tree.empty() != o.embedder.empty()) {
    return InvalidArgument("--tree ('{}') and --embedder ('{}') go together: a tree's centroids live in its embedder's space",
                           fmt::join(o.tree, ", "), o.embedder);
  }
  return absl::OkStatus();
}

}  // namespace membank
