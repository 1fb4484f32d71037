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

// The router's path finder over its trees and their embedder.
class TreePathFinder : public PathFinder {
 public:
  TreePathFinder(std::unique_ptr<Embedder> embedder, std::vector<ClusterTree> trees) : embedder_(std::move(embedder)), trees_(std::move(trees)) {
    for (const ClusterTree& tree : trees_)
      facts_.push_back({tree.fan_out(), tree.depth(), tree.dimension(), tree.Fingerprint(), embedder_->Fingerprint()});
  }
  const std::vector<TreeFacts>& trees() const override { return facts_; }
  absl::StatusOr<std::vector<std::vector<Resolution>>> Resolve(const std::vector<std::string>& texts) override {
    ASSIGN_OR_RETURN(const std::vector<std::vector<float>> embeddings, embedder_->Embed(texts));
    std::vector<std::vector<Resolution>> found(texts.size());
    for (size_t i = 0; i < texts.size(); ++i) {
      for (const ClusterTree& tree : trees_) {
        ASSIGN_OR_RETURN(found[i].emplace_back(), ResolveIn(tree, embeddings[i]));
      }
    }
    return found;
  }
  absl::StatusOr<std::vector<std::vector<float>>> Embed(const std::vector<std::string>& texts) override { return embedder_->Embed(texts); }

 private:
  const std::unique_ptr<Embedder> embedder_;
  const std::vector<ClusterTree> trees_;
  std::vector<TreeFacts> facts_;
};

absl::StatusOr<std::unique_ptr<PathFinder>> LoadPathFinder(const RouterOptions& options) {
  if (options.tree.empty()) return nullptr;
  ASSIGN_OR_RETURN(std::unique_ptr<Embedder> embedder, LoadMiniLm(options.embedder));
  std::vector<ClusterTree> trees;
  for (const std::string& path : options.tree) {
    ASSIGN_OR_RETURN(ClusterTree tree, ClusterTree::Load(path));
    RETURN_IF_ERROR(CheckFittedWith(tree, *embedder));
    for (size_t i = 0; i < trees.size(); ++i) {
      if (trees[i].Fingerprint() == tree.Fingerprint()) return InvalidArgument("--tree {} and {} are the same tree; give it once", options.tree[i], path);
    }
    trees.push_back(std::move(tree));
  }
  return std::make_unique<TreePathFinder>(std::move(embedder), std::move(trees));
}

// Empty without trees.
std::vector<std::string> FingerprintsOf(const PathFinder* paths) {
  std::vector<std::string> fingerprints;
  if (paths == nullptr) return fingerprints;
  for (const TreeFacts& tree : paths->trees()) fingerprints.push_back(tree.tree_fingerprint);
  return fingerprints;
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
  pool.tree_fingerprints = FingerprintsOf(paths.get());
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
  work.about = fmt::format("router of {} worker(s), tree {}", options.worker.size(),
                           paths ? fmt::format("{}", fmt::join(pool.tree_fingerprints, ", ")) : "(none)");
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
