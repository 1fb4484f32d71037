#include "router/call_scope.h"

namespace membank {

std::shared_ptr<grpc::ClientContext> CallScope::NewCall() {
  std::shared_ptr<grpc::ClientContext> context = caller_ ? grpc::ClientContext::FromServerContext(*caller_) : std::make_unique<grpc::ClientContext>();
  context->set_deadline(deadline_);
  absl::MutexLock lock(&mu_);
  if (cancelled_) context->TryCancel();
  current_ = context;
  return context;
}

void CallScope::Cancel() {
  absl::MutexLock lock(&mu_);
  cancelled_ = true;
  if (auto context = current_.lock()) context->TryCancel();
}

absl::Status CallScope::Check() const {
  if (std::chrono::system_clock::now() >= deadline_) return absl::DeadlineExceededError("the request's deadline has passed");
  absl::MutexLock lock(&mu_);
  if (cancelled_ || (caller_ != nullptr && caller_->IsCancelled())) return absl::CancelledError("the client cancelled the request");
  return absl::OkStatus();
}

}  // namespace membank
