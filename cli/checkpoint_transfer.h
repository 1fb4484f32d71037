// A committed checkpoint of all servers as a backup, and back on any number of servers, in streams: memory does not grow with the bank. A
// backup is the same bytes whatever the number of servers it came from:
//   part-00000001, ...   frames of all blocks in ascending order (common/bank/block_frame.h), cut every 64 MiB
//   manifest.json        the bank, the checkpoint's history, every part with its size and CRC32C; written last and never over another one
#pragma once

#include <functional>
#include <string>

#include "absl/status/statusor.h"
#include "cli/object_store.h"
#include "common/bank/bank_spec.h"
#include "common/client/checkpoint_client.h"

namespace membank {

struct TransferSummary {
  std::string id;
  CheckpointHistory history;
  uint64_t blocks = 0, bytes = 0, parts = 0;
};

// ALREADY_EXISTS when `store` has a backup.
absl::StatusOr<TransferSummary> ExportCheckpoint(CheckpointClient& client, const BankSpec& spec, const std::string& id, ObjectStore& store);

// Leaves a prepared checkpoint on every server, under the id it had or under `id`. Nothing is prepared before all parts were read and held.
absl::StatusOr<TransferSummary> ImportCheckpoint(ObjectStore& store, const BankSpec& spec, const std::string& id, CheckpointClient& client);

// Reads every byte; what is damaged.
absl::StatusOr<std::vector<std::string>> VerifyBackup(ObjectStore& store, TransferSummary* summary);

}  // namespace membank
