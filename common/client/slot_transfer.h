// Drives moves of slots between running memory servers: the stages of memory_server/slot_move.h, in order, with both servers. Whatever fails
// before the slot map is replaced is undone; what dies is undone by the servers themselves when their seals run out. One thread.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "common/bank/slot_map_source.h"
#include "common/bank/slot_plan.h"
#include "common/rpc/tls_files.h"

namespace membank {

struct SlotTransferOptions {
  std::string slot_map;                                                 // its location
  TlsFiles tls;
  absl::Duration lease = absl::Seconds(15);                             // after which the servers lift the fence by themselves, should this process die
  std::function<void(const std::string& stage)> report;                 // of every stage, for the operator; may be empty
};

struct SlotTransferResult {
  uint64_t blocks = 0, bytes = 0;      // copied, checkpoints and versions included
  double seconds = 0, fence_seconds = 0;
  uint64_t epoch = 0;                  // of the new map
};

class SlotTransfers {
 public:
  static absl::StatusOr<std::unique_ptr<SlotTransfers>> Open(const SlotTransferOptions& options);
  virtual ~SlotTransfers() = default;

  virtual absl::StatusOr<SlotMap> Map() = 0;
  // Payload bytes of touched blocks by slot, from the owners; by the spec while nothing was touched.
  virtual absl::StatusOr<std::vector<uint64_t>> SlotBytes() = 0;
  // `leave`: servers to take off the map once they have no slot.
  virtual absl::StatusOr<SlotTransferResult> Move(const SlotTransfer& transfer, absl::Span<const std::string> leave) = 0;
};

}  // namespace membank
