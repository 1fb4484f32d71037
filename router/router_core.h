// What a router does, for its gRPC service and its HTTP surface alike: chooses the paths of a request once, at admission, chooses a worker,
// forwards, and goes to another worker as long as the client has not seen anything. Requests and replies are the wire's own messages.
// Owned by main or a test; thread-safe. Errors: INVALID_ARGUMENT names the field, FAILED_PRECONDITION what is missing, UNAVAILABLE the
// workers that were tried.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "membank/v1/router.pb.h"
#include "router/call_scope.h"
#include "router/memory_plan.h"
#include "router/worker_pool.h"

namespace membank {

// A running answer. One thread, except that its CallScope may be cancelled from any. Destroying it early cancels the worker's side.
class Generation {
 public:
  ~Generation();
  // The next part; false after the last.
  absl::StatusOr<bool> Next(v1::RouteGenerateChunk* chunk);

 private:
  friend class Router;
  using Reader = std::unique_ptr<grpc::ClientReader<v1::GenerateChunk>>;
  Generation(WorkerPool::Lease lease, std::shared_ptr<grpc::ClientContext> context, Reader reader, v1::RouteGenerateChunk first)
      : lease_(std::move(lease)), context_(std::move(context)), reader_(std::move(reader)), first_(std::move(first)) {}

  WorkerPool::Lease lease_;
  std::shared_ptr<grpc::ClientContext> context_;
  Reader reader_;
  std::optional<v1::RouteGenerateChunk> first_;
  bool ended_ = false;
};

class Router {
 public:
  // `paths` may be null: then only explicit paths, generic memory and no memory are possible.
  Router(WorkerPool& workers, PathFinder* paths) : workers_(workers), paths_(paths) {}

  // Returns when the worker has accepted the request and its first part is there.
  absl::StatusOr<std::unique_ptr<Generation>> Generate(CallScope& scope, const v1::RouteGenerateRequest& request);
  absl::StatusOr<v1::RouteScoreReply> Score(CallScope& scope, const v1::RouteScoreRequest& request);
  absl::StatusOr<v1::ResolveReply> Resolve(CallScope& scope, const v1::ResolveRequest& request);
  absl::StatusOr<std::vector<std::vector<float>>> Embed(CallScope& scope, const std::vector<std::string>& texts);
  absl::StatusOr<v1::TokenizeReply> Tokenize(CallScope& scope, const v1::TokenizeRequest& request);
  absl::StatusOr<v1::DetokenizeReply> Detokenize(CallScope& scope, const v1::DetokenizeRequest& request);
  v1::RouterStatus Status() const;
  bool can_resolve() const { return paths_ != nullptr; }
  // Whether a request has a chance now.
  absl::Status Ready() const;

 private:
  // One sequence's memory: what it asks for and what it gets.
  struct Admission {
    const v1::MemoryOptions& memory;
    const v1::Prompt& text_source;  // where paths that are not given come from
    std::vector<BankPlan> plans;    // one per bank
    std::optional<v1::Resolution> resolution;
  };

  std::vector<PlannedBank> Banks() const;
  absl::Status Admit(CallScope& scope, const std::vector<PlannedBank>& banks, std::vector<Admission>* admissions);
  absl::StatusOr<std::string> TextOf(CallScope& scope, const v1::Prompt& prompt);
  v1::Resolution ToResolution(const std::vector<PlannedBank>& banks, const std::vector<Resolution>& by_tree, const std::vector<bool>& wanted) const;
  // In a prompt with special tokens a stop text like "<|im_end|>" means the token: it never shows in the text of an answer.
  absl::Status StopAtSpecialTokens(CallScope& scope, v1::Sampling* sampling) ABSL_LOCKS_EXCLUDED(mu_);
  // Calls `call` with one worker after another until one accepts: an error that says "not here, not now" moves on.
  absl::Status OnSomeWorker(std::optional<uint64_t> affinity, const NeededBanks& banks, const std::function<absl::Status(WorkerPool::Lease&)>& call);

  WorkerPool& workers_;
  PathFinder* const paths_;
  absl::Mutex mu_;
  std::map<std::string, std::optional<int32_t>> special_tokens_ ABSL_GUARDED_BY(mu_);  // nothing: the model has no such token
};

}  // namespace membank
