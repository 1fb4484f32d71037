// The admin port of a service, over HTTP: /livez (200 while the process answers), /readyz (200 or 503 with the reason; ?verbose
// adds what readiness stands on), /metrics (Prometheus text). Started before the service is ready and stopped last. Thread-safe.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "absl/status/statusor.h"

namespace membank {

struct Readiness {
  absl::Status status;   // not OK: its message is the reason
  std::string details;   // lines for ?verbose
};
using ReadinessCheck = std::function<Readiness()>;

class AdminServer {
 public:
  // `listen` is host:port, port 0 = any free one. Not ready at first. INVALID_ARGUMENT or UNAVAILABLE name the address.
  static absl::StatusOr<std::unique_ptr<AdminServer>> Start(const std::string& listen);
  ~AdminServer();

  const std::string& address() const;  // with the port that was bound
  // From now on each /readyz asks `check`; null: always ready. After SetNotReady no check runs any more.
  void SetReady(ReadinessCheck check);
  void SetNotReady(const std::string& reason);

 private:
  struct State;
  explicit AdminServer(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

}  // namespace membank
