// A raw HTTP/1.1 client for tests: sends bytes, reads one answer (Content-Length or chunked), can leave in the middle.
#pragma once

#include <arpa/inet.h>
#include <netinet/in.h>
#include <poll.h>
#include <strings.h>
#include <sys/socket.h>
#include <unistd.h>

#include <string>
#include <vector>

namespace membank {

class HttpTestClient {
 public:
  explicit HttpTestClient(const std::string& address) {
    socket_ = socket(AF_INET, SOCK_STREAM, 0);
    sockaddr_in to{};
    to.sin_family = AF_INET;
    to.sin_port = htons(static_cast<uint16_t>(std::stoi(address.substr(address.rfind(':') + 1))));
    to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    connected_ = connect(socket_, reinterpret_cast<sockaddr*>(&to), sizeof to) == 0;
  }
  HttpTestClient(const HttpTestClient&) = delete;
  ~HttpTestClient() { Close(); }
  void Close() {
    if (socket_ >= 0) close(socket_);
    socket_ = -1;
  }

  struct Reply {
    int status = 0;  // 0: no answer
    std::string headers, body;
  };

  bool Send(const std::string& bytes) {
    return connected_ && send(socket_, bytes.data(), bytes.size(), MSG_NOSIGNAL) == static_cast<ssize_t>(bytes.size());
  }
  bool SendRequest(const std::string& method, const std::string& path, const std::string& body, const std::string& headers = "") {
    return Send(method + " " + path + " HTTP/1.1\r\nHost: test\r\n" + headers +
                (method == "GET" ? "" : "Content-Length: " + std::to_string(body.size()) + "\r\n") + "\r\n" + body);
  }
  Reply Call(const std::string& method, const std::string& path, const std::string& body = "", const std::string& headers = "") {
    SendRequest(method, path, body, headers);
    return Receive();
  }

  Reply Receive() {
    Reply reply;
    size_t end;
    while ((end = in_.find("\r\n\r\n")) == std::string::npos) {
      if (!More()) return reply;
    }
    reply.headers = in_.substr(0, end + 2);
    in_.erase(0, end + 4);
    reply.status = std::stoi(reply.headers.substr(9, 3));
    const std::string length = Header(reply.headers, "Content-Length");
    if (!length.empty()) {
      while (in_.size() < std::stoul(length) && More()) {
      }
      reply.body = in_.substr(0, std::stoul(length));
      in_.erase(0, std::stoul(length));
    } else if (Header(reply.headers, "Transfer-Encoding") == "chunked") {
      while (ReadChunk(&reply.body)) {
      }
    }
    return reply;
  }

  // Reads until `text` was seen in what arrives; false when the connection ends before.
  bool WaitForText(const std::string& text) {
    while (in_.find(text) == std::string::npos) {
      if (!More()) return false;
    }
    return true;
  }

  static std::string Header(const std::string& headers, const std::string& name) {
    for (size_t at = 0; (at = headers.find("\r\n", at)) != std::string::npos;) {
      at += 2;
      if (strncasecmp(headers.c_str() + at, (name + ": ").c_str(), name.size() + 2) == 0) {
        return headers.substr(at + name.size() + 2, headers.find("\r\n", at) - at - name.size() - 2);
      }
    }
    return "";
  }

 private:
  bool ReadChunk(std::string* body) {
    size_t end;
    while ((end = in_.find("\r\n")) == std::string::npos) {
      if (!More()) return false;
    }
    const size_t size = std::stoul(in_.substr(0, end), nullptr, 16);
    while (in_.size() < end + 2 + size + 2) {
      if (!More()) return false;
    }
    body->append(in_, end + 2, size);
    in_.erase(0, end + 2 + size + 2);
    return size > 0;
  }

  bool More() {
    pollfd poller{socket_, POLLIN, 0};
    if (socket_ < 0 || poll(&poller, 1, 10000) <= 0) return false;
    char buffer[4096];
    const ssize_t n = recv(socket_, buffer, sizeof buffer, 0);
    if (n > 0) in_.append(buffer, static_cast<size_t>(n));
    return n > 0;
  }

  int socket_ = -1;
  bool connected_ = false;
  std::string in_;
};

// The payloads of the "data:" lines of a server-sent event stream.
inline std::vector<std::string> SseEvents(const std::string& body) {
  std::vector<std::string> events;
  for (size_t at = 0; at < body.size();) {
    const size_t end = body.find("\n\n", at);
    if (end == std::string::npos) break;
    const std::string event = body.substr(at, end - at);
    if (event.starts_with("data: ")) events.push_back(event.substr(6));
    at = end + 2;
  }
  return events;
}

}  // namespace membank
