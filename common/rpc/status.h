// The border between absl::Status (inside) and grpc::Status / HTTP (outside): one table, here. Payloads of an absl::Status travel as
// details in `grpc-status-details-bin` (ErrorDetails, byte-compatible with google.rpc.Status) and come back as payloads. Pure functions.
#pragma once

#include <optional>
#include <string>

#include "absl/status/status.h"
#include "common/bank/block.h"
#include "grpcpp/support/status.h"

namespace membank {

grpc::Status ToGrpc(const absl::Status& status);

// `peer` (a server's address, or empty) goes in front of the message.
absl::Status FromGrpc(const grpc::Status& status, const std::string& peer = "");

// The HTTP status of an error: INVALID_ARGUMENT 400, RESOURCE_EXHAUSTED 429, UNAVAILABLE 503, ...
int HttpStatus(absl::StatusCode code);

// A block was asked from a server that does not own it: adds the server's name and slot-map epoch to the error as a detail.
void AddWrongSlot(const std::string& server_id, uint64_t slot_map_epoch, BlockId id, absl::Status* status);
// The server's slot-map epoch when `status` is such an error.
std::optional<uint64_t> WrongSlotEpoch(const absl::Status& status);

}  // namespace membank
