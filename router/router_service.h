// The router over gRPC: check, call the core, map the error, fill the reply. Owned by main or a test; gRPC's threads call it.
#pragma once

#include <chrono>

#include "membank/v1/router.grpc.pb.h"
#include "router/router_core.h"

namespace membank {

class RouterServiceImpl final : public v1::RouterService::Service {
 public:
  // `request_timeout`: the deadline of a request whose caller set none.
  RouterServiceImpl(Router& router, std::chrono::milliseconds request_timeout) : router_(router), request_timeout_(request_timeout) {}

  grpc::Status Generate(grpc::ServerContext* context, const v1::RouteGenerateRequest* request,
                        grpc::ServerWriter<v1::RouteGenerateChunk>* writer) override;
  grpc::Status Score(grpc::ServerContext* context, const v1::RouteScoreRequest* request, v1::RouteScoreReply* reply) override;
  grpc::Status Resolve(grpc::ServerContext* context, const v1::ResolveRequest* request, v1::ResolveReply* reply) override;
  grpc::Status Status(grpc::ServerContext* context, const v1::RouterStatusRequest* request, v1::RouterStatus* reply) override;

 private:
  CallScope Scope(const grpc::ServerContext& context) const;

  Router& router_;
  const std::chrono::milliseconds request_timeout_;
};

}  // namespace membank
