#include "common/rpc/service_process.h"

#include <pthread.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>

#include "absl/time/clock.h"
#include "common/base/file.h"
#include "common/base/log.h"
#include "common/base/status_macros.h"
#include "common/rpc/server.h"
#include "nlohmann/json.hpp"

namespace membank {

ServiceProcess::ServiceProcess(const ServiceOptions& options) : options_(options) {
  sigemptyset(&signals_);
  sigaddset(&signals_, SIGTERM);
  sigaddset(&signals_, SIGINT);
  pthread_sigmask(SIG_BLOCK, &signals_, nullptr);
  std::signal(SIGPIPE, SIG_IGN);
}

absl::StatusOr<std::unique_ptr<ServiceProcess>> ServiceProcess::Start(const ServiceOptions& options) {
  std::unique_ptr<ServiceProcess> process(new ServiceProcess(options));
  if (!options.admin_listen.empty()) {
    ASSIGN_OR_RETURN(process->admin_, AdminServer::Start(options.admin_listen));
  }
  return process;
}

absl::Status ServiceProcess::ServeUntilStopped(const ServiceWork& work) {
  RpcServerOptions rpc;
  rpc.listen = options_.listen;
  rpc.memory_quota_bytes = options_.memory_quota_bytes;
  rpc.tls = options_.tls;
  ASSIGN_OR_RETURN(const std::unique_ptr<RpcServer> server, RpcServer::Start(rpc, work.services));
  std::map<std::string, std::string> addresses = work.addresses;
  addresses["listen"] = server->address();
  addresses["admin"] = admin_ ? admin_->address() : "";
  server->SetReady(true);
  if (admin_) admin_->SetReady(work.readiness);
  const absl::Status written = WriteReadyFile(addresses);
  if (written.ok()) {
    LOG_INFO("{}: serving on {}", work.about, nlohmann::json(addresses).dump());
    int signal = 0;
    sigwait(&signals_, &signal);
    LOG_INFO("{}: draining for at most {} ms; a second signal ends it at once", strsignal(signal), options_.drain_timeout_ms);
    pthread_sigmask(SIG_UNBLOCK, &signals_, nullptr);
  }

  const absl::Time deadline = absl::Now() + absl::Milliseconds(options_.drain_timeout_ms);
  if (admin_) admin_->SetNotReady(written.ok() ? "draining" : "stopping");
  server->SetReady(false);
  if (work.drain) work.drain(deadline);
  server->Shutdown(absl::ToChronoMilliseconds(std::max(deadline - absl::Now(), absl::ZeroDuration())));
  if (!options_.ready_file.empty()) unlink(options_.ready_file.c_str());
  return written;
}

absl::Status ServiceProcess::WriteReadyFile(std::map<std::string, std::string> addresses) const {
  if (options_.ready_file.empty()) return absl::OkStatus();
  nlohmann::json ready(addresses);
  ready["pid"] = getpid();
  return WriteFileAtomic(options_.ready_file, ready.dump() + "\n");
}

}  // namespace membank
