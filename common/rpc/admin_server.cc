#include "common/rpc/admin_server.h"

#include <sys/socket.h>

#include <charconv>
#include <thread>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "common/base/metrics.h"
#include "common/base/status_macros.h"
#include "httplib.h"

namespace membank {
namespace {

constexpr int kThreads = 2;
constexpr int kTimeoutSeconds = 5;  // of an idle or slow connection: it holds one of the threads

// httplib's default also sets SO_REUSEPORT, with which two processes share a port and answer at random.
void ReuseAddress(socket_t socket) {
  const int on = 1;
  setsockopt(socket, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
}

struct HostPort {
  std::string host;
  int port = 0;
};

absl::StatusOr<HostPort> ParseListen(const std::string& listen) {
  const size_t colon = listen.rfind(':');
  HostPort result;
  if (colon != std::string::npos) {
    result.host = listen.substr(0, colon);
    const auto [end, error] = std::from_chars(listen.data() + colon + 1, listen.data() + listen.size(), result.port);
    if (error == std::errc() && end == listen.data() + listen.size() && !result.host.empty() && result.port >= 0 && result.port <= 65535) {
      return result;
    }
  }
  return InvalidArgument("the admin address '{}' is not host:port with a port from 0 to 65535", listen);
}

}  // namespace

struct AdminServer::State {
  httplib::Server http;
  std::string address;
  std::thread thread;
  absl::Mutex mu;
  ReadinessCheck readiness ABSL_GUARDED_BY(mu) = [] { return Readiness{absl::UnavailableError("starting"), ""}; };
};

absl::StatusOr<std::unique_ptr<AdminServer>> AdminServer::Start(const std::string& listen) {
  ASSIGN_OR_RETURN(const HostPort target, ParseListen(listen));
  auto owned = std::make_unique<State>();
  State* const state = owned.get();
  httplib::Server& http = state->http;
  http.new_task_queue = [] { return new httplib::ThreadPool(kThreads); };
  http.set_socket_options(ReuseAddress);
  http.set_read_timeout(kTimeoutSeconds);
  http.set_write_timeout(kTimeoutSeconds);
  http.set_keep_alive_timeout(kTimeoutSeconds);
  http.set_payload_max_length(4096);
  http.Get("/livez", [](const httplib::Request&, httplib::Response& response) { response.set_content("ok\n", "text/plain"); });
  http.Get("/readyz", [state](const httplib::Request& request, httplib::Response& response) {
    absl::MutexLock lock(&state->mu);
    const Readiness readiness = state->readiness();
    response.status = readiness.status.ok() ? 200 : 503;
    std::string body = readiness.status.ok() ? "ok\n" : std::string(readiness.status.message()) + "\n";
    if (request.has_param("verbose")) body += readiness.details;
    response.set_content(body, "text/plain");
  });
  http.Get("/metrics", [](const httplib::Request&, httplib::Response& response) {
    response.set_content(MetricsText(), "text/plain; version=0.0.4");
  });
  int port = target.port;
  const bool bound = port == 0 ? (port = http.bind_to_any_port(target.host)) > 0 : http.bind_to_port(target.host, port);
  if (!bound) return Unavailable("cannot listen on the admin address '{}': it is in use or not of this machine", listen);
  state->address = fmt::format("{}:{}", target.host, port);
  state->thread = std::thread([state] { state->http.listen_after_bind(); });
  while (!http.is_running()) std::this_thread::sleep_for(std::chrono::milliseconds(1));  // else stop() would come before the loop
  return std::unique_ptr<AdminServer>(new AdminServer(std::move(owned)));
}

AdminServer::AdminServer(std::unique_ptr<State> state) : state_(std::move(state)) {}

AdminServer::~AdminServer() {
  state_->http.stop();
  state_->thread.join();
}

const std::string& AdminServer::address() const { return state_->address; }

void AdminServer::SetReady(ReadinessCheck check) {
  if (!check) check = [] { return Readiness(); };
  absl::MutexLock lock(&state_->mu);
  state_->readiness = std::move(check);
}

void AdminServer::SetNotReady(const std::string& reason) {
  SetReady([status = absl::UnavailableError(reason)] { return Readiness{status, ""}; });
}

}  // namespace membank
