#include "router/http/http_connection.h"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

namespace membank {
namespace {
constexpr std::chrono::milliseconds kSlice{100};  // how often a waiting connection looks at the flags
}

HttpConnection::HttpConnection(int socket, const HttpServerOptions& options, const std::atomic<bool>& aborted)
    : socket_(socket), options_(options), aborted_(aborted) {
  const int on = 1;
  setsockopt(socket_, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
}

bool HttpConnection::WaitReadable(std::chrono::steady_clock::time_point deadline, const std::function<bool()>& give_up) {
  while (!aborted_ && !(give_up && give_up())) {
    const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(deadline - std::chrono::steady_clock::now());
    if (left.count() <= 0) return false;
    pollfd poller{socket_, POLLIN, 0};
    const int ready = poll(&poller, 1, static_cast<int>(std::min(left, kSlice).count()) + 1);
    if (ready > 0) return true;
    if (ready < 0 && errno != EINTR) return false;
  }
  return false;
}

bool HttpConnection::WaitForRequest(const std::function<bool()>& give_up) {
  if (begin_ < end_) return true;
  return WaitReadable(std::chrono::steady_clock::now() + options_.idle_timeout, give_up);
}

void HttpConnection::BeginRequest() {
  deadline_ = std::chrono::steady_clock::now() + options_.receive_timeout;
  counting_header_ = true;
  header_bytes_ = 0;
}

ssize_t HttpConnection::Read(char* data, size_t size) {
  if (begin_ == end_) {
    if (!WaitReadable(deadline_, {})) return -1;
    const ssize_t n = recv(socket_, buffer_, sizeof buffer_, 0);
    if (n <= 0) return n;
    begin_ = 0;
    end_ = static_cast<size_t>(n);
  }
  const size_t n = std::min(size, end_ - begin_);
  if (counting_header_ && (header_bytes_ += n) > options_.max_header_bytes) return -1;
  memcpy(data, buffer_ + begin_, n);
  begin_ += n;
  return static_cast<ssize_t>(n);
}

bool HttpConnection::ReadExactly(std::string* data, size_t size) {
  // Grows with what has arrived, not with what was announced.
  while (data->size() < size) {
    const size_t have = data->size();
    data->resize(std::min(size, have + (64 << 10)));
    const ssize_t n = Read(data->data() + have, data->size() - have);
    if (n <= 0) return false;
    data->resize(have + static_cast<size_t>(n));
  }
  return true;
}

ssize_t HttpConnection::Write(const char* data, size_t size) {
  size_t sent = 0;
  while (sent < size) {
    const ssize_t n = send(socket_, data + sent, size - sent, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (n > 0) {
      sent += static_cast<size_t>(n);
      continue;
    }
    if (n < 0 && errno == EINTR) continue;
    if (n == 0 || (errno != EAGAIN && errno != EWOULDBLOCK)) return -1;
    pollfd poller{socket_, POLLOUT, 0};
    if (poll(&poller, 1, static_cast<int>(options_.send_timeout.count())) <= 0) return -1;
  }
  return static_cast<ssize_t>(size);
}

}  // namespace membank
