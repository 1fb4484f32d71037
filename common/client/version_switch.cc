#include "common/client/version_switch.h"

#include <memory>
#include <set>

#include "absl/time/clock.h"
#include "common/base/status_macros.h"
#include "common/client/peer_call.h"
#include "common/client/worker_client.h"

namespace membank {
namespace {

using Workers = std::vector<std::unique_ptr<WorkerClient>>;

std::string NameOf(const std::string& version) { return version.empty() ? "the live head" : version; }

absl::StatusOr<Workers> ConnectAll(const VersionSwitchOptions& options) {
  if (options.workers.empty()) return InvalidArgument("no worker is named; at least one is needed");
  Workers workers;
  std::set<std::string> seen;
  for (const std::string& address : options.workers) {
    if (!seen.insert(address).second) return InvalidArgument("worker {} is named twice", address);
    ASSIGN_OR_RETURN(workers.emplace_back(), WorkerClient::Create({address, options.tls, options.timeout}));
  }
  return workers;
}

// What new sequences of each worker get; left alone where it does not say or has no such bank.
void ReadNow(const Workers& workers, const std::string& bank, VersionSwitch* result) {
  StatusesInParallel(workers.size(), [&](size_t i) {
    const absl::StatusOr<WorkerClient::Status> status = workers[i]->GetStatus();
    if (!status.ok()) return status.status();
    if (bank.empty()) {
      result->workers[i].now = status->bank_version;
    } else if (const auto found = status->bank_versions.find(bank); found != status->bank_versions.end()) {
      result->workers[i].now = found->second;
    }
    return absl::OkStatus();
  });
}

// Tells all workers, or with `check_only` asks them; what each got before.
void TellAll(const Workers& workers, const VersionSwitchOptions& options, bool check_only, VersionSwitch* result) {
  StatusesInParallel(workers.size(), [&](size_t i) {
    const absl::StatusOr<std::string> before = workers[i]->UseBankVersion(options.bank, options.version, check_only);
    if (before.ok()) result->workers[i].before = *before;
    return result->workers[i].status = before.status();
  });
}

bool AllCould(const VersionSwitch& result) {
  for (const WorkerVersion& worker : result.workers)
    if (!worker.status.ok()) return false;
  return true;
}

// One line for every worker that does not get the version; the code is the first one's.
absl::Status Failures(const VersionSwitch& result, const std::string& version, const std::string& advice) {
  absl::StatusCode code = absl::StatusCode::kOk;
  std::string text;
  for (const WorkerVersion& worker : result.workers) {
    if (worker.status.ok()) continue;
    if (code == absl::StatusCode::kOk) code = worker.status.code();
    text += fmt::format("worker {} cannot use {}: {}; ", worker.address, NameOf(version), std::string(worker.status.message()));
  }
  return absl::Status(code, text + advice);
}

}  // namespace

absl::StatusOr<VersionSwitch> SwitchBankVersion(const VersionSwitchOptions& options) {
  ASSIGN_OR_RETURN(const Workers workers, ConnectAll(options));
  VersionSwitch result;
  for (const std::string& address : options.workers) result.workers.push_back({address, {}, {}, {}});
  TellAll(workers, options, /*check_only=*/true, &result);
  if (!AllCould(result)) {
    ReadNow(workers, options.bank, &result);
    for (WorkerVersion& worker : result.workers) worker.before = worker.now;
    result.status = Failures(result, options.version, "no worker was changed; to change the others without it, name them with --worker");
    return result;
  }
  const absl::Time begin = absl::Now();
  TellAll(workers, options, /*check_only=*/false, &result);
  result.took = absl::Now() - begin;
  ReadNow(workers, options.bank, &result);
  for (WorkerVersion& worker : result.workers) {
    if (worker.status.ok() && worker.now.has_value() && *worker.now != options.version)
      worker.status = Aborted("it uses {} already: another command changed it at the same time", NameOf(*worker.now));
  }
  if (!AllCould(result)) {
    result.status = Failures(result, options.version, "the others were changed; repeat the command, or go back with the version before");
  }
  return result;
}

}  // namespace membank
