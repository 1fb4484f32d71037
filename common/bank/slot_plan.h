// Plans which slots go where: every target server gets its share of the bytes, servers that are no targets get rid of all they have, and no more
// is moved than that takes. Pure functions.
#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "common/bank/bank_spec.h"
#include "common/bank/slot_map.h"

namespace membank {

struct SlotTransfer {
  std::string from;      // id of the old owner
  SlotServer to;
  SlotSet slots;
  uint64_t bytes = 0;
};

// Bytes of all blocks of each slot, touched or not: what to plan by while nothing was trained.
std::vector<uint64_t> SlotBytesOf(const BankSpec& spec);

// `bytes`: of each of the 1,024 slots. INVALID_ARGUMENT when `targets` is empty. Each transfer has one old and one new owner.
absl::StatusOr<std::vector<SlotTransfer>> PlanTransfers(const SlotMap& map, absl::Span<const uint64_t> bytes,
                                                        const std::vector<SlotServer>& targets);

// The same transfer in parts of at most `most` bytes, or of one slot: what the new owner holds in RAM until a part is its own.
std::vector<SlotTransfer> SplitTransfer(const SlotTransfer& transfer, absl::Span<const uint64_t> bytes, uint64_t most);

}  // namespace membank
