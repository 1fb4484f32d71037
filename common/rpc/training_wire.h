// A run's settings <-> their protobuf message: one table for clients, servers, and servers that hand a run on. Pure functions.
#pragma once

#include "absl/status/statusor.h"
#include "common/bank/training.h"
#include "membank/v1/memory.pb.h"

namespace membank {

void ToProto(const RunSettings& settings, v1::BeginRunRequest* out);
absl::StatusOr<RunSettings> FromProto(const v1::BeginRunRequest& request);  // INVALID_ARGUMENT names the field and the allowed values

}  // namespace membank
