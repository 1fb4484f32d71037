// A small HTTP/1.1 server: routes, bounded requests, chunked answers, notice when a client goes away. Built on cpp-httplib 0.11.4
// (Debian), used by this one .cc. Why not Boost.Beast: the API is a handful of short handlers that block on a gRPC stream, which fits
// threads; httplib parses and frames in one package that is already a shared library, where Beast would cost Boost's headers and an
// asynchronous rewrite of every handler. What httplib lacks at this version we do on its connection seam (own socket stream): a bound on
// header bytes and on the time a request may take to arrive, a bounded queue of connections (503 beyond it), a backlog above 5, bodies only with
// Content-Length, and the disconnect watch. No TLS here: put it behind a proxy or the gRPC port.
// Owned by main or a test, one thread; handlers run on the server's threads, many at once.
#pragma once

#include <atomic>
#include <chrono>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"

namespace membank {

struct HttpServerOptions {
  std::string listen = "127.0.0.1:0";                    // host:port, port 0 = any free one
  int threads = 128;                                     // requests served at once; each running request holds one
  int queue = 64;                                        // connections that wait for a thread; more are answered 503
  size_t max_header_bytes = 32 << 10;
  size_t max_body_bytes = 8 << 20;
  std::chrono::milliseconds receive_timeout{30000};      // for a whole request to arrive
  std::chrono::milliseconds send_timeout{10000};         // without progress, then the connection is dropped
  std::chrono::milliseconds idle_timeout{60000};         // between requests of a connection
};

struct HttpRequest {
  std::string method, path, body;
  std::multimap<std::string, std::string> params;        // of the query string
  // While the returned object lives, `gone` is called (once, from another thread, must not block) when the client has closed the connection
  // or the server stops waiting for it.
  std::function<std::shared_ptr<void>(std::function<void()> gone)> when_gone;
};

// Sends a chunk; false when the client is gone.
using HttpWriter = std::function<bool(std::string_view)>;

struct HttpResponse {
  int status = 200;
  std::string content_type = "application/json";
  std::string body;
  std::vector<std::pair<std::string, std::string>> headers;
  std::function<void(const HttpWriter&)> stream;         // when set, the body is what this writes, sent as it comes
};

using HttpHandler = std::function<HttpResponse(const HttpRequest&)>;

struct HttpRoute {
  std::string method, path;
  HttpHandler handler;
};

class HttpServer {
 public:
  // UNAVAILABLE when the address cannot be bound; INVALID_ARGUMENT when it is no host:port.
  static absl::StatusOr<std::unique_ptr<HttpServer>> Start(const HttpServerOptions& options, std::vector<HttpRoute> routes);
  virtual ~HttpServer() = default;

  // Where clients reach it: the host as given, the port that was bound.
  virtual const std::string& address() const = 0;

  // Accepts no more, lets running requests end for `drain`, then tells the rest that their client is gone and waits. Idempotent.
  virtual void Shutdown(std::chrono::milliseconds drain) = 0;
};

}  // namespace membank
