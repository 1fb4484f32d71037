// Reads and changes the access table of a bank, on all its servers. Plain structs, no gRPC or protobuf here. Calls block; any thread.
#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "common/bank/access_table.h"
#include "common/bank/bank_spec.h"
#include "common/client/memory_client.h"

namespace membank {

struct MemoryTopology;

struct PurgeSummary {
  uint64_t blocks = 0;  // of the live heads, that had been trained
  uint64_t cuts = 0;    // checkpoints and versions that were searched, over all servers
};

// What the servers of a bank say about its access.
struct AccessView {
  AccessTable table;             // the newest that any of them has
  std::vector<uint64_t> epochs;  // of each server's own; 0: it did not answer, or has never had one
};

class AccessClient {
 public:
  // Reads slot map and certificates; connects with the first call.
  static absl::StatusOr<std::unique_ptr<AccessClient>> Create(const MemoryClientOptions& options);

  // A change counts as made only when every server has it, so one answer is enough to know all changes made; UNAVAILABLE when no server answers
  // in time.
  absl::StatusOr<AccessView> Read(std::chrono::milliseconds timeout) const;

  // Reads the tables of all servers, applies `change` to the newest, and sets the result on all. OK: it is in force and durable everywhere. On an
  // error some servers may have it; the same change again is safe and makes them agree. The new table.
  absl::StatusOr<AccessTable> Change(const std::function<absl::Status(const BankSpec& spec, AccessTable* table)>& change) const;

  // Removes the bytes of a blocked prefix from all servers. On an error some may have done so; may be repeated.
  absl::StatusOr<PurgeSummary> Purge(const std::string& prefix) const;

  absl::StatusOr<BankSpec> Spec() const;

 private:
  AccessClient(const MemoryClientOptions& options, std::shared_ptr<const MemoryTopology> topology)
      : options_(options), topology_(std::move(topology)) {}

  const MemoryClientOptions options_;
  const std::shared_ptr<const MemoryTopology> topology_;
};

}  // namespace membank
