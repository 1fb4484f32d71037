// membank-router: settings, tree and embedder, workers, gRPC and HTTP; serve until SIGTERM or SIGINT; drain and end in reverse.
#include <unistd.h>

#include "common/base/log.h"
#include "common/base/malloc_tuning.h"
#include "common/base/status_macros.h"
#include "common/base/thread_tuning.h"
#include "common/config/config.h"
#include "common/rpc/server.h"
#include "common/rpc/service_process.h"
#include "router/http/openai_service.h"
#include "router/options.h"
#include "router/retriever/retriever.h"
#include "router/router_service.h"

namespace membank {
namespace {

// The retriever as the router's path finder.
class RetrieverPathFinder : public PathFinder {
 public:
  explicit RetrieverPathFinder(std::unique_ptr<Retriever> retriever) : retriever_(std::move(retriever)) {
    const ClusterTree& tree = retriever_->tree();
    facts_ = {tree.fan_out(), tree.depth(), tree.dimension(), tree.Fingerprint(), retriever_->embedder().Fingerprint()};
  }
  const TreeFacts& facts() const override { return facts_; }
  absl::StatusOr<std::vector<Resolution>> Resolve(const std::vector<std::string>& texts) override { return retriever_->Resolve(texts); }
  absl::StatusOr<std::vector<std::vector<float>>> Embed(const std::vector<std::string>& texts) override {
    return retriever_->embedder().Embed(texts);
  }

 private:
  const std::unique_ptr<Retriever> retriever_;
  TreeFacts facts_;
};

absl::StatusOr<std::unique_ptr<PathFinder>> LoadPathFinder(const RouterOptions& options) {
  if (options.tree.empty()) return nullptr;
  ASSIGN_OR_RETURN(ClusterTree tree, ClusterTree::Load(options.tree));
  ASSIGN_OR_RETURN(std::unique_ptr<Embedder> embedder, LoadMiniLm(options.embedder));
  ASSIGN_OR_RETURN(std::unique_ptr<Retriever> retriever, Retriever::Create(std::move(embedder), std::move(tree)));
  return std::make_unique<RetrieverPathFinder>(std::move(retriever));
}

absl::StatusOr<std::unique_ptr<HttpServer>> StartHttp(const std::string& listen, int threads, const RouterOptions& options,
                                                      std::vector<HttpRoute> routes) {
  if (listen.empty()) return nullptr;
  HttpServerOptions http;
  http.listen = listen;
  http.threads = threads;
  http.max_body_bytes = options.http_max_body_bytes;
  return HttpServer::Start(http, std::move(routes));
}

absl::Status Serve(const RouterOptions& options, const StopSignals& stop_signals) {
  ASSIGN_OR_RETURN(const std::unique_ptr<PathFinder> paths, LoadPathFinder(options));
  WorkerPoolOptions pool;
  pool.workers = options.worker;
  pool.poll_interval = std::chrono::milliseconds(options.worker_poll_ms);
  pool.tls = {options.tls_certificate, options.tls_key, options.tls_authority};
  if (paths) pool.tree_fingerprint = paths->facts().tree_fingerprint;
  ASSIGN_OR_RETURN(const std::unique_ptr<WorkerPool> workers, WorkerPool::Create(pool));
  Router router(*workers, paths.get());

  const std::chrono::milliseconds request_timeout(options.request_timeout_ms);
  std::atomic<bool> draining{false};
  RouterServiceImpl service(router, request_timeout);
  OpenAiService openai(router, request_timeout);
  RpcServerOptions rpc_options;
  rpc_options.listen = options.listen;
  rpc_options.tls = pool.tls;
  ASSIGN_OR_RETURN(const std::unique_ptr<RpcServer> rpc, RpcServer::Start(rpc_options, {&service}));
  ASSIGN_OR_RETURN(const std::unique_ptr<HttpServer> http, StartHttp(options.http_listen, options.http_threads, options, openai.Routes()));
  ASSIGN_OR_RETURN(const std::unique_ptr<HttpServer> admin, StartHttp(options.admin_listen, 4, options, AdminRoutes(router, draining)));
  rpc->SetReady(true);
  RETURN_IF_ERROR(WriteReadyFile(options.ready_file, {{"listen", rpc->address()},
                                                      {"http", http ? http->address() : ""},
                                                      {"admin", admin ? admin->address() : ""}}));
  LOG_INFO("router serves gRPC on {}, HTTP on {}, admin on {}; {} worker(s), tree {}", rpc->address(), http ? http->address() : "(none)",
           admin ? admin->address() : "(none)", options.worker.size(), paths ? paths->facts().tree_fingerprint : "(none)");

  LOG_INFO("{}: draining for at most {} ms", stop_signals.Wait(), options.drain_timeout_ms);
  draining = true;
  rpc->SetReady(false);
  const std::chrono::milliseconds drain(options.drain_timeout_ms);
  const auto end = std::chrono::steady_clock::now() + drain;
  if (http) http->Shutdown(drain);
  const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(end - std::chrono::steady_clock::now());
  rpc->Shutdown(std::max(left, std::chrono::milliseconds(0)));
  if (admin) admin->Shutdown(std::chrono::milliseconds(0));
  if (!options.ready_file.empty()) unlink(options.ready_file.c_str());
  LOG_INFO("router stopped");
  return absl::OkStatus();
}

int Main(int argc, char** argv) {
  TuneThreads(argv);
  RouterOptions options;
  CLI::App app("membank-router: finds the path of a text, chooses a worker, forwards", "membank-router");
  BindOptions(app, &options);
  if (const auto code = config::Parse(app, argc, argv, [&] { return Validate(options); })) return *code;
  TuneMalloc();
  InitLogging("router", options.log_level);
  const StopSignals stop_signals;
  std::signal(SIGPIPE, SIG_IGN);
  if (const absl::Status status = Serve(options, stop_signals); !status.ok()) {
    LOG_ERROR("{}", std::string(status.message()));
    return 1;
  }
  return 0;
}

}  // namespace
}  // namespace membank

int main(int argc, char** argv) { return membank::Main(argc, argv); }
