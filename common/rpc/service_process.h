// What the main of every service does beside its own work: tell where it listens, and wait to be stopped.
#pragma once

#include <csignal>
#include <map>
#include <string>

#include "absl/status/status.h"

namespace membank {

// SIGTERM and SIGINT, blocked from construction on so that only Wait gets them. Construct it before any thread starts.
class StopSignals {
 public:
  StopSignals();
  // Blocks until one arrives; its name, for the log.
  std::string Wait() const;

 private:
  sigset_t signals_;
};

// A JSON object of the addresses the service listens on (and its pid), written atomically once it serves: tests and scripts that ask for
// port 0 read the bound ports from it. An empty path writes nothing.
absl::Status WriteReadyFile(const std::string& path, const std::map<std::string, std::string>& addresses);

}  // namespace membank
