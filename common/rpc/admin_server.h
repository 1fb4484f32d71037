// The admin port of a service, over HTTP: /livez (200 while the process answers), /readyz (200 or 503 with the reason), /metrics
// (Prometheus text). Started before the service is ready and stopped last. Thread-safe.
#pragma once

#include <memory>
#include <string>

#include "absl/status/statusor.h"

namespace membank {

class AdminServer {
 public:
  // `listen` is host:port, port 0 = any free one. Not ready at first. INVALID_ARGUMENT or UNAVAILABLE name the address.
  static absl::StatusOr<std::unique_ptr<AdminServer>> Start(const std::string& listen);
  ~AdminServer();

  const std::string& address() const;  // with the port that was bound
  void SetReady(bool ready, const std::string& reason = "");

 private:
  struct State;
  explicit AdminServer(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

}  // namespace membank
