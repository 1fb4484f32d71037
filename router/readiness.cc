#include "router/readiness.h"

#include "fmt/format.h"

namespace membank {

Readiness CheckReadiness(const Router& router) {
  Readiness readiness{router.Ready(), ""};
  const v1::RouterStatus status = router.Status();
  for (const v1::WorkerState& worker : status.workers()) {
    std::string stacked;
    for (const v1::StackedBank& bank : worker.status().stacked())
      stacked += fmt::format("stacked={} version={} ", bank.bank().bank_id(), bank.bank_version());
    readiness.details += fmt::format("[{}] worker {} model={} bank={} version={} {}in_flight={} {}\n", worker.healthy() ? "+" : "-",
                                     worker.address(), worker.status().model(), worker.status().bank().bank_id(),
                                     worker.status().bank_version(), stacked, worker.in_flight(), worker.error());
  }
  return readiness;
}

}  // namespace membank
