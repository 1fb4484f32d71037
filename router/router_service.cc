#include "router/router_service.h"

#include "common/base/metrics.h"
#include "common/rpc/status.h"

namespace membank {
namespace {

grpc::Status Counted(const char* call, const absl::Status& status) {
  GetCounter("membank_router_requests_total", "gRPC requests",
             {{"call", call}, {"code", std::string(absl::StatusCodeToString(status.code()))}})
      .Increment();
  return ToGrpc(status);
}

template <typename Reply>
absl::Status Fill(absl::StatusOr<Reply> result, Reply* reply) {
  if (result.ok()) reply->Swap(&*result);
  return result.status();
}

}  // namespace

CallScope RouterServiceImpl::Scope(const grpc::ServerContext& context) const {
  return CallScope(std::chrono::system_clock::now() + request_timeout_, context);
}

grpc::Status RouterServiceImpl::Generate(grpc::ServerContext* context, const v1::RouteGenerateRequest* request,
                                         grpc::ServerWriter<v1::RouteGenerateChunk>* writer) {
  CallScope scope = Scope(*context);
  absl::StatusOr<std::unique_ptr<Generation>> generation = router_.Generate(scope, *request);
  if (!generation.ok()) return Counted("Generate", generation.status());
  v1::RouteGenerateChunk chunk;
  while (true) {
    const absl::StatusOr<bool> more = (*generation)->Next(&chunk);
    if (!more.ok() || !*more) return Counted("Generate", more.status());
    if (!writer->Write(chunk)) return Counted("Generate", absl::CancelledError("the client has gone away"));
  }
}

grpc::Status RouterServiceImpl::Score(grpc::ServerContext* context, const v1::RouteScoreRequest* request, v1::RouteScoreReply* reply) {
  CallScope scope = Scope(*context);
  return Counted("Score", Fill(router_.Score(scope, *request), reply));
}

grpc::Status RouterServiceImpl::Resolve(grpc::ServerContext* context, const v1::ResolveRequest* request, v1::ResolveReply* reply) {
  CallScope scope = Scope(*context);
  return Counted("Resolve", Fill(router_.Resolve(scope, *request), reply));
}

grpc::Status RouterServiceImpl::Status(grpc::ServerContext*, const v1::RouterStatusRequest*, v1::RouterStatus* reply) {
  *reply = router_.Status();
  return grpc::Status::OK;
}

}  // namespace membank
