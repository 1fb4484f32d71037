// Changes all workers of a bank to another published version, newer or older, while they serve. Every worker is asked first whether it could,
// so that a version which is missing somewhere changes nothing anywhere. Workers change one by one, within milliseconds of each other;
// meanwhile some answers are made with the one version and some with the other, and each says with which.
#pragma once

#include <chrono>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "common/rpc/tls_files.h"

namespace membank {

struct VersionSwitchOptions {
  std::vector<std::string> workers;               // addresses
  std::string bank;                               // by name; empty: each worker's first one
  std::string version;                            // empty: the live head
  TlsFiles tls;
  std::chrono::milliseconds timeout{30000};       // of each call; a worker asks the memory servers for up to 10 s
};

struct WorkerVersion {
  std::string address;
  std::optional<std::string> before, now;         // what new sequences got and get; nothing: the worker did not say
  absl::Status status;                            // why it could not change
};

struct VersionSwitch {
  std::vector<WorkerVersion> workers;             // in the order given
  absl::Duration took;                            // from the first worker told to the last one's answer
  absl::Status status;                            // OK: all get the version; else names every worker that does not, and what to do
};

// INVALID_ARGUMENT: no workers, one named twice, or a broken address.
absl::StatusOr<VersionSwitch> SwitchBankVersion(const VersionSwitchOptions& options);

}  // namespace membank
