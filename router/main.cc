// membank-router: tree and embedder, workers, HTTP, and the RouterService.
#include "CLI/CLI.hpp"
#include "common/base/log.h"
#include "common/base/malloc_tuning.h"
#include "common/base/status_macros.h"
#include "common/base/thread_tuning.h"
#include "common/config/config.h"
#include "common/rpc/service_process.h"
#include "router/http/openai_service.h"
#include "router/options.h"
#include "router/readiness.h"
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

absl::StatusOr<std::unique_ptr<HttpServer>> StartHttp(const RouterOptions& options, std::vector<HttpRoute> routes) {
  if (options.http_listen.empty()) return nullptr;
  HttpServerOptions http;
  http.listen = options.http_listen;
  http.threads = options.http_threads;
  http.max_body_bytes = options.http_max_body_bytes;
  return HttpServer::Start(http, std::move(routes));
}

absl::Status Run(const RouterOptions& options) {
  ASSIGN_OR_RETURN(const std::unique_ptr<ServiceProcess> process, ServiceProcess::Start(options.service));
  ASSIGN_OR_RETURN(const std::unique_ptr<PathFinder> paths, LoadPathFinder(options));
  WorkerPoolOptions pool;
  pool.workers = options.worker;
  pool.poll_interval = std::chrono::milliseconds(options.worker_poll_ms);
  pool.tls = options.service.tls;
  if (paths) pool.tree_fingerprint = paths->facts().tree_fingerprint;
  ASSIGN_OR_RETURN(const std::unique_ptr<WorkerPool> workers, WorkerPool::Create(pool));
  Router router(*workers, paths.get());

  const std::chrono::milliseconds request_timeout(options.request_timeout_ms);
  RouterServiceImpl service(router, request_timeout);
  OpenAiService openai(router, request_timeout);
  ASSIGN_OR_RETURN(const std::unique_ptr<HttpServer> http, StartHttp(options, openai.Routes()));
  ServiceWork work;
  work.services = {&service};
  work.addresses = {{"http", http ? http->address() : ""}};
  work.readiness = [&] { return CheckReadiness(router); };
  work.about = fmt::format("router of {} worker(s), tree {}", options.worker.size(), paths ? paths->facts().tree_fingerprint : "(none)");
  work.drain = [&](absl::Time deadline) {
    if (http) http->Shutdown(absl::ToChronoMilliseconds(std::max(deadline - absl::Now(), absl::ZeroDuration())));
  };
  return process->ServeUntilStopped(work);
}

}  // namespace
}  // namespace membank

int main(int argc, char** argv) {
  membank::TuneThreads(argv);
  membank::TuneMalloc();
  membank::RouterOptions options;
  CLI::App app("membank-router: finds the path of a text, chooses a worker, forwards", "membank-router");
  membank::BindOptions(app, &options);
  if (auto code = membank::config::Parse(app, argc, argv, [&] { return membank::Validate(options); })) return *code;
  membank::InitLogging("router", options.service.log_level);
  const absl::Status status = membank::Run(options);
  if (!status.ok()) LOG_ERROR("{}", status.ToString());
  return status.ok() ? 0 : 1;
}
