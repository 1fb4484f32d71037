// The deadline and cancellation of one client's request, handed on to every call that the router makes for it.
// Thread-safe; lives as long as the request.
#pragma once

#include <chrono>
#include <memory>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "grpcpp/client_context.h"
#include "grpcpp/server_context.h"

namespace membank {

class CallScope {
 public:
  // A request that came over HTTP: ends at `deadline` or by Cancel.
  explicit CallScope(std::chrono::system_clock::time_point deadline) : deadline_(deadline) {}
  // A request that came over gRPC: gets the caller's deadline and cancellation, and `deadline` when that is sooner.
  CallScope(std::chrono::system_clock::time_point deadline, const grpc::ServerContext& caller)
      : deadline_(std::min(deadline, caller.deadline())), caller_(&caller) {}

  // The context of the next call; the caller of this function keeps it until that call has ended.
  std::shared_ptr<grpc::ClientContext> NewCall() ABSL_LOCKS_EXCLUDED(mu_);

  // Ends the running calls; later ones are born cancelled.
  void Cancel() ABSL_LOCKS_EXCLUDED(mu_);

  // CANCELLED or DEADLINE_EXCEEDED when nobody waits for the answer any more: asked before work that makes no call.
  absl::Status Check() const ABSL_LOCKS_EXCLUDED(mu_);

 private:
  const std::chrono::system_clock::time_point deadline_;
  const grpc::ServerContext* const caller_ = nullptr;
  mutable absl::Mutex mu_;
  bool cancelled_ ABSL_GUARDED_BY(mu_) = false;
  std::weak_ptr<grpc::ClientContext> current_ ABSL_GUARDED_BY(mu_);
};

}  // namespace membank
