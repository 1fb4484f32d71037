// One accepted connection as a byte stream with our limits: bytes of the header, time for a request to arrive, time without progress
// when sending. One thread, except `Abort`. Knows no HTTP library.
#pragma once

#include <sys/types.h>

#include <atomic>
#include <chrono>
#include <cstddef>
#include <string>

#include "router/http/http_server.h"

namespace membank {

class HttpConnection {
 public:
  // `aborted`: set when the server wants all connections to end now.
  HttpConnection(int socket, const HttpServerOptions& options, const std::atomic<bool>& aborted);

  int socket() const { return socket_; }

  // Waits for the first byte of the next request; false when none comes in the idle time, the peer closed, or `give_up` says so.
  bool WaitForRequest(const std::function<bool()>& give_up);
  // From here the receive timeout and the header budget count.
  void BeginRequest();
  void EndHeader() { counting_header_ = false; }

  ssize_t Read(char* data, size_t size);         // > 0, 0 at the end, -1 on error, timeout or a header that is too large
  bool ReadExactly(std::string* data, size_t size);
  ssize_t Write(const char* data, size_t size);  // all or -1

 private:
  bool WaitReadable(std::chrono::steady_clock::time_point deadline, const std::function<bool()>& give_up);

  const int socket_;
  const HttpServerOptions& options_;
  const std::atomic<bool>& aborted_;
  std::chrono::steady_clock::time_point deadline_;
  bool counting_header_ = false;
  size_t header_bytes_ = 0;
  char buffer_[8192];
  size_t begin_ = 0, end_ = 0;
};

}  // namespace membank
