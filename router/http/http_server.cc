#include "router/http/http_server.h"

#include <deque>
#include <optional>
#include <thread>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "common/base/log.h"
#include "common/base/metrics.h"
#include "common/base/status_macros.h"
#include "httplib.h"
#include "router/http/http_connection.h"
#include "router/http/http_error.h"
#include "router/http/peer_watch.h"

namespace membank {
namespace {

thread_local HttpConnection* current_connection = nullptr;  // of the request that this thread serves
thread_local bool refuse_connection = false;                // the pool is full: answer 503 and close

// A fixed pool whose queue is bounded: what does not fit runs at once with `refuse_connection` set.
class BoundedPool : public httplib::TaskQueue {
 public:
  BoundedPool(int threads, int queue) : limit_(queue) {
    for (int i = 0; i < threads; ++i) threads_.emplace_back([this] { Run(); });
  }

  void enqueue(std::function<void()> work) override {
    {
      absl::MutexLock lock(&mu_);
      if (static_cast<int>(queue_.size()) - idle_ < limit_) {
        queue_.push_back(std::move(work));
        return;
      }
    }
    refuse_connection = true;
    work();
    refuse_connection = false;
  }

  void shutdown() override {
    {
      absl::MutexLock lock(&mu_);
      stopping_ = true;
    }
    for (std::thread& thread : threads_) thread.join();
  }

  bool waiting() {
    absl::MutexLock lock(&mu_);
    return static_cast<int>(queue_.size()) > idle_;
  }

 private:
  void Run() {
    while (true) {
      std::function<void()> work;
      {
        absl::MutexLock lock(&mu_);
        ++idle_;
        mu_.Await(absl::Condition(this, &BoundedPool::Ready));
        --idle_;
        if (queue_.empty()) return;
        work = std::move(queue_.front());
        queue_.pop_front();
      }
      work();
    }
  }
  bool Ready() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) { return stopping_ || !queue_.empty(); }

  const int limit_;
  absl::Mutex mu_;
  std::deque<std::function<void()>> queue_ ABSL_GUARDED_BY(mu_);
  int idle_ ABSL_GUARDED_BY(mu_) = 0;
  bool stopping_ ABSL_GUARDED_BY(mu_) = false;
  std::vector<std::thread> threads_;
};

// HttpConnection as httplib sees a connection.
class ConnectionStream : public httplib::Stream {
 public:
  explicit ConnectionStream(HttpConnection& connection) : connection_(connection) {}
  bool is_readable() const override { return true; }
  bool is_writable() const override { return true; }
  ssize_t read(char* data, size_t size) override { return connection_.Read(data, size); }
  ssize_t write(const char* data, size_t size) override { return connection_.Write(data, size); }
  void get_remote_ip_and_port(std::string&, int&) const override {}
  void get_local_ip_and_port(std::string&, int&) const override {}
  socket_t socket() const override { return connection_.socket(); }

 private:
  HttpConnection& connection_;
};

struct HostPort {
  std::string host;
  int port;
};

absl::StatusOr<HostPort> SplitAddress(const std::string& address) {
  const size_t colon = address.rfind(':');
  const std::string digits = colon == std::string::npos ? "" : address.substr(colon + 1);
  if (digits.empty() || digits.size() > 5 || digits.find_first_not_of("0123456789") != std::string::npos || std::stoi(digits) > 65535) {
    return InvalidArgument("HTTP address '{}' is not host:port, e.g. 127.0.0.1:8080 or [::]:0", address);
  }
  std::string host = address.substr(0, colon);
  if (host.size() > 2 && host.front() == '[' && host.back() == ']') host = host.substr(1, host.size() - 2);
  return HostPort{host.empty() ? "0.0.0.0" : host, std::stoi(digits)};
}

class HttplibServer : public HttpServer, private httplib::Server {
 public:
  HttplibServer(const HttpServerOptions& options, std::vector<HttpRoute> routes) : options_(options), routes_(std::move(routes)) {}
  ~HttplibServer() override { Shutdown(std::chrono::milliseconds(0)); }

  absl::Status Listen() {
    ASSIGN_OR_RETURN(const HostPort address, SplitAddress(options_.listen));
    new_task_queue = [this] { return pool_ = new BoundedPool(options_.threads, options_.queue); };  // httplib deletes it
    set_socket_options([](socket_t socket) {
      const int on = 1;
      setsockopt(socket, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);  // and not SO_REUSEPORT: no port is shared
    });
    set_keep_alive_timeout(std::chrono::duration_cast<std::chrono::seconds>(options_.idle_timeout).count());
    set_keep_alive_max_count(kRequestsPerConnection);
    set_pre_routing_handler([this](const httplib::Request& request, httplib::Response& response) {
      Handle(request, response);
      return HandlerResponse::Handled;
    });
    int port = address.port;
    if (port == 0) {
      port = bind_to_any_port(address.host);
      if (port < 0) return Unavailable("cannot listen for HTTP on {}: {}", options_.listen, strerror(errno));
    } else if (!bind_to_port(address.host, port)) {
      return Unavailable("cannot listen for HTTP on {}: {} (is another process using the port?)", options_.listen, strerror(errno));
    }
    ::listen(svr_sock_, 1024);  // httplib's backlog is 5
    address_ = options_.listen.substr(0, options_.listen.rfind(':')) + ":" + std::to_string(port);
    thread_ = std::thread([this] { listen_after_bind(); });
    while (!is_running()) std::this_thread::sleep_for(std::chrono::milliseconds(1));
    return absl::OkStatus();
  }

  const std::string& address() const override { return address_; }

  void Shutdown(std::chrono::milliseconds drain) override {
    if (!thread_.joinable()) return;
    stopping_ = true;
    stop();
    const auto deadline = std::chrono::steady_clock::now() + drain;
    while (running_ > 0 && std::chrono::steady_clock::now() < deadline) std::this_thread::sleep_for(std::chrono::milliseconds(5));
    aborted_ = true;
    watch_.CancelAll();
    thread_.join();
  }

 private:
  static constexpr int kRequestsPerConnection = 10000;

  bool process_and_close_socket(socket_t socket) override {
    HttpConnection connection(socket, options_, aborted_);
    if (refuse_connection) {
      Refuse(connection);
    } else {
      ServeConnection(connection);
    }
    ::shutdown(socket, SHUT_RDWR);
    ::close(socket);
    return true;
  }

  // An idle connection gives its thread up when others wait for one.
  void ServeConnection(HttpConnection& connection) {
    ConnectionStream stream(connection);
    const auto give_up = [this] { return stopping_ || pool_->waiting(); };
    for (int served = 0; served < kRequestsPerConnection; ++served) {
      if (!connection.WaitForRequest(served == 0 ? [this] { return stopping_.load(); } : std::function<bool()>(give_up))) return;
      connection.BeginRequest();
      current_connection = &connection;
      bool closed = false;
      const bool ok = process_request(stream, stopping_ || served + 1 == kRequestsPerConnection, closed, nullptr);
      if (!ok || closed) return;
    }
  }

  void Refuse(HttpConnection& connection) {
    const HttpResponse error = ErrorResponse(503, fmt::format("all {} threads are busy and {} connections wait; retry later",
                                                              options_.threads, options_.queue));
    const std::string reply = fmt::format(
        "HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nRetry-After: 1\r\nConnection: close\r\n"
        "Content-Length: {}\r\n\r\n{}",
        error.body.size(), error.body);
    connection.Write(reply.data(), reply.size());
  }

  void Handle(const httplib::Request& request, httplib::Response& response) {
    ++running_;
    const auto start = std::chrono::steady_clock::now();
    current_connection->EndHeader();
    HttpResponse answer = Answer(request, &response);
    response.status = answer.status;
    for (auto& [name, value] : answer.headers) response.set_header(name, value);
    if (answer.stream) {
      response.set_chunked_content_provider(
          answer.content_type,
          [stream = std::move(answer.stream)](size_t, httplib::DataSink& sink) {
            try {
              stream([&sink](std::string_view chunk) { return sink.write(chunk.data(), chunk.size()); });
            } catch (const std::exception& error) {
              LOG_ERROR("answer broken off: {}", error.what());
              return false;
            }
            sink.done();
            return true;
          },
          [this](bool) { --running_; });
    } else {
      response.set_content(answer.body, answer.content_type);
      --running_;
    }
    Count(request, answer.status, std::chrono::steady_clock::now() - start);
  }

  // The route's answer, or the error of a request that reaches no route.
  HttpResponse Answer(const httplib::Request& request, httplib::Response* response) {
    HttpRequest own;
    own.method = request.method;
    own.path = request.path;
    own.params.insert(request.params.begin(), request.params.end());
    if (std::optional<HttpResponse> error = ReadBody(request, &own.body)) {
      response->set_header("Connection", "close");  // what is left of the body cannot be told from a next request
      return *error;
    }
    own.when_gone = [this, socket = current_connection->socket()](std::function<void()> gone) {
      return watch_.Watch(socket, std::move(gone));
    };
    const HttpRoute* other_method = nullptr;
    for (const HttpRoute& route : routes_) {
      if (route.path != own.path) continue;
      if (route.method == own.method) return Call(route, own);
      other_method = &route;
    }
    if (other_method != nullptr) {
      HttpResponse error = ErrorResponse(405, fmt::format("{} is not allowed on {}; use {}", own.method, own.path, other_method->method));
      error.headers.push_back({"Allow", other_method->method});
      return error;
    }
    return ErrorResponse(404, fmt::format("no such path: {} {}", own.method, own.path));
  }

  static HttpResponse Call(const HttpRoute& route, const HttpRequest& request) {
    try {
      return route.handler(request);
    } catch (const std::exception& error) {
      LOG_ERROR("{} {}: {}", request.method, request.path, error.what());
      return ErrorResponse(500, "internal error; the router's log has the details");
    }
  }

  std::optional<HttpResponse> ReadBody(const httplib::Request& request, std::string* body) {
    if (request.has_header("Transfer-Encoding")) return ErrorResponse(411, "send the body with Content-Length, not with Transfer-Encoding");
    if (!request.has_header("Content-Length")) return std::nullopt;
    const std::string length = request.get_header_value("Content-Length");
    if (request.get_header_value_count("Content-Length") != 1 || length.empty() || length.size() > 18 ||
        length.find_first_not_of("0123456789") != std::string::npos) {
      return ErrorResponse(400, fmt::format("Content-Length '{}' is not one decimal number", length));
    }
    const size_t size = std::stoull(length);
    if (size > options_.max_body_bytes) {
      return ErrorResponse(413, fmt::format("the body has {} bytes; at most {} are accepted", size, options_.max_body_bytes));
    }
    if (!current_connection->ReadExactly(body, size)) {
      return ErrorResponse(408, fmt::format("{} of {} bytes of the body arrived in time", body->size(), size));
    }
    return std::nullopt;
  }

  void Count(const httplib::Request& request, int status, std::chrono::steady_clock::duration time) {
    bool known = false;
    for (const HttpRoute& route : routes_) known |= route.path == request.path;
    const std::string path = known ? request.path : "other";
    GetCounter("membank_router_http_requests_total", "HTTP requests", {{"path", path}, {"code", std::to_string(status)}}).Increment();
    GetLatency("membank_router_http_seconds", "Until an answer or the first byte of a stream", {{"path", path}})
        .Observe(std::chrono::duration<double>(time).count());
  }

  const HttpServerOptions options_;
  const std::vector<HttpRoute> routes_;
  std::string address_;
  BoundedPool* pool_ = nullptr;
  PeerWatch watch_;
  std::atomic<bool> stopping_{false}, aborted_{false};
  std::atomic<int> running_{0};
  std::thread thread_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<HttpServer>> HttpServer::Start(const HttpServerOptions& options, std::vector<HttpRoute> routes) {
  auto server = std::make_unique<HttplibServer>(options, std::move(routes));
  RETURN_IF_ERROR(server->Listen());
  return server;
}

}  // namespace membank
