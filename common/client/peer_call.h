// Unary calls of memory servers, one or all at once.
#pragma once

#include <functional>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "common/client/retry.h"
#include "common/client/topology.h"
#include "common/rpc/status.h"
#include "grpcpp/client_context.h"

namespace membank {

// One call. `wait`: for the connection. Errors name the server.
template <typename Request, typename Reply>
absl::Status CallOnce(const MemoryPeer& peer, absl::Time deadline, bool wait,
                      grpc::Status (v1::MemoryService::Stub::*method)(grpc::ClientContext*, const Request&, Reply*), const Request& request,
                      Reply* reply) {
  grpc::ClientContext context;
  context.set_deadline(absl::ToChronoTime(deadline));
  context.set_wait_for_ready(wait);
  return FromGrpc((peer.stub.get()->*method)(&context, request, reply), peer.name);
}

// As above; UNAVAILABLE is retried until the deadline when `retry`.
template <typename Request, typename Reply>
absl::Status CallPeer(const MemoryPeer& peer, absl::Time deadline, bool retry,
                      grpc::Status (v1::MemoryService::Stub::*method)(grpc::ClientContext*, const Request&, Reply*), const Request& request,
                      Reply* reply) {
  const auto call = [&](bool wait) { return CallOnce(peer, deadline, wait, method, request, reply); };
  return retry ? RetryWhileUnavailable(deadline, call) : call(false);
}

// work(i) for every i at once, each on a thread of its own: a call may wait for another call's step, so no pool may run dry.
inline std::vector<absl::Status> StatusesInParallel(size_t count, const std::function<absl::Status(size_t)>& work) {
  std::vector<absl::Status> results(count);
  std::vector<std::thread> threads;
  for (size_t i = 1; i < count; ++i) threads.emplace_back([&, i] { results[i] = work(i); });
  if (count > 0) results[0] = work(0);
  for (std::thread& thread : threads) thread.join();
  return results;
}

// As above; the first error by index.
inline absl::Status InParallel(size_t count, const std::function<absl::Status(size_t)>& work) {
  for (absl::Status& status : StatusesInParallel(count, work)) {
    if (!status.ok()) return std::move(status);
  }
  return absl::OkStatus();
}

}  // namespace membank
