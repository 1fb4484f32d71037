// Gradients of blocks as they were pushed, and their sum over ranks. The sum is a pure function of the ranks' contributions: they are added
// in rank order, blocks are visited in ascending order, and no operation is fused, so the result has the same bits on every machine and for
// every order of arrival (promise P10). Pure functions, any thread.
#pragma once

#include <map>
#include <optional>
#include <vector>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "common/bank/block.h"
#include "common/base/buffer.h"
#include "common/tensors/dtype.h"

namespace membank {

struct Gradient {
  DType dtype = DType::kF32;  // F32 or BF16
  Buffer bytes;
  std::optional<double> sum_of_squares = std::nullopt;  // computed when it arrived, while the next one was on its way; of sums not known
};

using RankGradients = std::map<BlockId, Gradient>;  // one rank's contribution to a step; ascending

uint64_t BytesOf(const RankGradients& gradients);

// INVALID_ARGUMENT names the first element that is NaN or infinite.
absl::Status CheckFinite(DType dtype, absl::Span<const uint8_t> bytes);

// Adds the ranks in order. With one contribution to a block its bytes are kept as they came; with several the sum is fp32.
RankGradients SumRanks(std::vector<RankGradients> ranks);

// In double, 16 interleaved lanes joined at the end.
double SumOfSquares(const Gradient& gradient);

}  // namespace membank
