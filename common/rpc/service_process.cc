#include "common/rpc/service_process.h"

#include <pthread.h>
#include <unistd.h>

#include <cstring>

#include "common/base/file.h"
#include "nlohmann/json.hpp"

namespace membank {

StopSignals::StopSignals() {
  sigemptyset(&signals_);
  sigaddset(&signals_, SIGTERM);
  sigaddset(&signals_, SIGINT);
  pthread_sigmask(SIG_BLOCK, &signals_, nullptr);
}

std::string StopSignals::Wait() const {
  int signal = 0;
  sigwait(&signals_, &signal);
  return strsignal(signal);
}

absl::Status WriteReadyFile(const std::string& path, const std::map<std::string, std::string>& addresses) {
  if (path.empty()) return absl::OkStatus();
  nlohmann::json ready(addresses);
  ready["pid"] = getpid();
  return WriteFileAtomic(path, ready.dump() + "\n");
}

}  // namespace membank
