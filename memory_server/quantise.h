// Publishing as int8: the blocks of a cut, written once more in the smaller form (common/bank/payload.h). Memory: one block in both forms and one
// layer of it as floats, whatever the size of the bank.
#pragma once

#include <functional>

#include "absl/status/statusor.h"
#include "common/bank/bank_spec.h"
#include "memory_server/checkpoint.h"

namespace membank {

// From `from`, whose digest must be `expected`, to the empty `to`; returns the digest of what was written, not yet flushed. DATA_LOSS names a
// damaged block, FAILED_PRECONDITION one that holds NaN or infinity. `before_write` is asked with the bytes of each block, and its error ends it.
absl::StatusOr<CutDigest> QuantiseStore(const BankSpec& spec, BlockStore* from, const CutDigest& expected, BlockStore* to,
                                        const std::function<absl::Status(uint64_t bytes)>& before_write);

}  // namespace membank
