#include "common/base/metrics.h"
#include "fmt/format.h"
#include "router/http/openai_service.h"

namespace membank {
namespace {

HttpResponse Text(int status, std::string body) {
  HttpResponse response;
  response.status = status;
  response.content_type = "text/plain; charset=utf-8";
  response.body = std::move(body);
  return response;
}

HttpResponse Readiness(const Router& router, bool draining, bool verbose) {
  const absl::Status ready = draining ? absl::UnavailableError("draining") : router.Ready();
  std::string body = ready.ok() ? "ok\n" : fmt::format("not ready: {}\n", std::string(ready.message()));
  if (verbose) {
    const v1::RouterStatus status = router.Status();
    for (const v1::WorkerState& worker : status.workers()) {
      body += fmt::format("[{}] worker {} model={} bank={} version={} in_flight={} {}\n", worker.healthy() ? "+" : "-", worker.address(),
                          worker.status().model(), worker.status().bank().bank_id(), worker.status().bank_version(), worker.in_flight(),
                          worker.error());
    }
  }
  return Text(ready.ok() ? 200 : 503, body);
}

}  // namespace

std::vector<HttpRoute> AdminRoutes(const Router& router, const std::atomic<bool>& draining) {
  return {
      {"GET", "/livez", [](const HttpRequest&) { return Text(200, "ok\n"); }},
      {"GET", "/readyz",
       [&router, &draining](const HttpRequest& request) { return Readiness(router, draining, request.params.contains("verbose")); }},
      {"GET", "/metrics",
       [](const HttpRequest&) {
         HttpResponse response = Text(200, MetricsText());
         response.content_type = "text/plain; version=0.0.4; charset=utf-8";
         return response;
       }},
  };
}

}  // namespace membank
