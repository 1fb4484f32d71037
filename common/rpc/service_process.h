// What every service does beside its own work, from start to stop: stop signals, the admin port, the gRPC server, the ready file, and the
// drain. Used from main alone, one thread:
//
//   ASSIGN_OR_RETURN(const std::unique_ptr<ServiceProcess> process, ServiceProcess::Start(options.service));   // before any thread
//   ... load what is served ...
//   return process->ServeUntilStopped({.services = {&service}, .about = "bank 'b'", .drain = [&](absl::Time) { shard->Shutdown(); }});
#pragma once

#include <csignal>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "common/rpc/admin_server.h"
#include "common/rpc/service_options.h"
#include "grpcpp/server.h"

namespace membank {

struct ServiceWork {
  std::vector<grpc::Service*> services;
  std::map<std::string, std::string> addresses;  // beside "listen" and "admin", by the name they get in the ready file
  ReadinessCheck readiness;                      // null: ready while it serves
  std::string about;                             // what is served, for the log
  // Called when a signal has come and /readyz says so: ends the service's own work by the deadline. The calls that are still running
  // then have until the same deadline, and are cancelled. May be null.
  std::function<void(absl::Time deadline)> drain;
};

class ServiceProcess {
 public:
  // Blocks SIGTERM and SIGINT for all threads to come, ignores SIGPIPE, and opens the admin port, which says "starting". UNAVAILABLE or
  // INVALID_ARGUMENT name the address.
  static absl::StatusOr<std::unique_ptr<ServiceProcess>> Start(const ServiceOptions& options);

  // Serves until SIGTERM or SIGINT, then drains: readiness off, own work, running calls. The ready file exists while calls are served.
  // A second signal ends the process at once.
  absl::Status ServeUntilStopped(const ServiceWork& work);

 private:
  explicit ServiceProcess(const ServiceOptions& options);
  // A JSON object of the addresses and the process id, whole or not at all: who asked for port 0 reads the bound ports from it.
  absl::Status WriteReadyFile(std::map<std::string, std::string> addresses) const;

  const ServiceOptions options_;
  sigset_t signals_;
  std::unique_ptr<AdminServer> admin_;  // null: none wanted
};

}  // namespace membank
