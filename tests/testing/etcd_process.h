// A real etcd process for tests, on loopback: started, killed, started again on its data. Debian's etcd-server has the program. One thread.
#pragma once

#include <arpa/inet.h>
#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <filesystem>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "common/base/status_macros.h"
#include "common/rpc/tls_files.h"

extern char** environ;

namespace membank::testing_support {

inline int FreePort() {
  const int fd = ::socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof address;
  ::bind(fd, reinterpret_cast<sockaddr*>(&address), size);
  ::getsockname(fd, reinterpret_cast<sockaddr*>(&address), &size);
  ::close(fd);
  return ntohs(address.sin_port);
}

class EtcdProcess {
 public:
  // Data and log below `root`; with `tls` it serves with the certificate and asks clients for one of the authority.
  explicit EtcdProcess(std::string root, TlsFiles tls = {}) : root_(std::move(root)), tls_(std::move(tls)) {
    std::filesystem::remove_all(root_ + "/etcd");
    std::filesystem::create_directories(root_);
  }
  ~EtcdProcess() { Kill(); }
  EtcdProcess(const EtcdProcess&) = delete;

  // Returns when it takes connections.
  absl::Status Start() {
    const std::string client = fmt::format("{}://{}", tls_.any() ? "https" : "http", address());
    const std::string peer = fmt::format("http://127.0.0.1:{}", peer_port_);
    std::vector<std::string> words = {"etcd", "--name", "e0", "--data-dir", root_ + "/etcd", "--listen-client-urls", client,
                                      "--advertise-client-urls", client, "--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer,
                                      "--initial-cluster", "e0=" + peer, "--log-outputs", root_ + "/etcd.log", "--logger", "zap"};
    if (tls_.any()) {
      words.insert(words.end(), {"--cert-file", tls_.certificate, "--key-file", tls_.key, "--trusted-ca-file", tls_.authority, "--client-cert-auth"});
    }
    std::vector<char*> argv;
    for (std::string& word : words) argv.push_back(word.data());
    argv.push_back(nullptr);
    if (posix_spawnp(&pid_, "etcd", nullptr, nullptr, argv.data(), environ) != 0) {
      pid_ = 0;
      return NotFound("etcd cannot be started; deploy/setup installs Debian's etcd-server");
    }
    for (int i = 0; i < 6000; ++i) {
      if (Listens()) return absl::OkStatus();
      if (int status; waitpid(pid_, &status, WNOHANG) == pid_) {
        pid_ = 0;
        return Internal("etcd ended with wait status {}; see {}/etcd.log", status, root_);
      }
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
    }
    return DeadlineExceeded("etcd did not get ready; see {}/etcd.log", root_);
  }

  void Kill() {
    if (pid_ == 0) return;
    kill(pid_, SIGKILL);
    waitpid(pid_, nullptr, 0);
    pid_ = 0;
  }

  std::string address() const { return fmt::format("127.0.0.1:{}", port_); }
  std::string location() const { return fmt::format("{}://{}/membank/slots", tls_.any() ? "etcds" : "etcd", address()); }

 private:
  bool Listens() const {
    const int fd = ::socket(AF_INET, SOCK_STREAM, 0);
    sockaddr_in to{};
    to.sin_family = AF_INET;
    to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    to.sin_port = htons(static_cast<uint16_t>(port_));
    const bool listens = ::connect(fd, reinterpret_cast<sockaddr*>(&to), sizeof to) == 0;
    ::close(fd);
    return listens;
  }

  const std::string root_;
  const TlsFiles tls_;
  const int port_ = FreePort(), peer_port_ = FreePort();
  pid_t pid_ = 0;
};

}  // namespace membank::testing_support
