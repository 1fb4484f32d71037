// A real memory server process for tests: started, killed with any signal, started again on its data. One thread.
#pragma once

#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "common/base/file.h"
#include "common/base/status_macros.h"
#include "nlohmann/json.hpp"

extern char** environ;

namespace membank::testing_support {

// Starts a program of this build; 0 when it cannot be started. Its stdout goes to `output`, unless that is negative.
inline pid_t Spawn(const std::string& program, std::vector<std::string> words, int output = -1) {
  words.insert(words.begin(), std::string(getenv("MEMBANK_BIN_DIR")) + "/" + program);
  std::vector<char*> argv;
  for (std::string& word : words) argv.push_back(word.data());
  argv.push_back(nullptr);
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  if (output >= 0) posix_spawn_file_actions_adddup2(&actions, output, STDOUT_FILENO);
  pid_t pid = 0;
  const int error = posix_spawn(&pid, argv[0], &actions, nullptr, argv.data(), environ);
  posix_spawn_file_actions_destroy(&actions);
  return error == 0 ? pid : 0;
}

// One memory server process of a bank whose files lie in `root`: spec.json, server-slots.json, <id>/ (data). Killed with the object.
class ServerProcess {
 public:
  ServerProcess(std::string id, std::string root, std::vector<std::string> more = {})
      : id_(std::move(id)), root_(std::move(root)), more_(std::move(more)) {}
  ~ServerProcess() { Signal(SIGKILL); }

  // Returns when it serves; the first time on any free port, later on the same one.
  absl::Status Start() {
    const std::string ready = root_ + "/" + id_ + ".ready";
    std::filesystem::remove(ready);
    std::vector<std::string> words = {"--server-id", id_, "--listen", address_, "--admin-listen", "", "--data-dir", root_ + "/" + id_,
                                      "--bank-spec", root_ + "/spec.json", "--slot-map", root_ + "/server-slots.json", "--ready-file", ready,
                                      "--log-level", "warn", "--free-space-watermark-bytes", "0"};
    words.insert(words.end(), more_.begin(), more_.end());
    pid_ = Spawn("membank-memory-server", words);
    if (pid_ == 0) return Internal("cannot start server {}", id_);
    for (int i = 0; i < 1000; ++i) {
      if (auto json = ReadFile(ready); json.ok()) {
        address_ = nlohmann::json::parse(*json)["listen"];
        return absl::OkStatus();
      }
      if (int status; waitpid(pid_, &status, WNOHANG) == pid_) {
        pid_ = 0;
        return Internal("server {} ended with wait status {}", id_, status);
      }
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
    }
    return DeadlineExceeded("server {} did not get ready", id_);
  }

  // SIGSTOP, SIGCONT: the process stays.
  void Send(int signal) { kill(pid_, signal); }

  // The wait status; 0 when it was not running.
  int Signal(int signal) {
    if (pid_ == 0) return 0;
    kill(pid_, signal);
    int status = 0;
    waitpid(pid_, &status, 0);
    pid_ = 0;
    return status;
  }

  const std::string& id() const { return id_; }
  const std::string& address() const { return address_; }

 private:
  const std::string id_, root_;
  const std::vector<std::string> more_;  // arguments
  std::string address_ = "127.0.0.1:0";
  pid_t pid_ = 0;
};

}  // namespace membank::testing_support
