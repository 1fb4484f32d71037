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
#include "common/bank/block_layout.h"
#include "common/base/buffer.h"
#include "common/tensors/dtype.h"
#include "memory_server/update_loops.h"

namespace membank {

struct Gradient {
  DType dtype = DType::kF32;  // F32, BF16 or I8_ROWS (common/bank/gradient_codec.h)
  Buffer bytes;
  std::optional<double> sum_of_squares = std::nullopt;  // computed while it arrived; of sums not known
};

using RankGradients = std::map<BlockId, Gradient>;  // one rank's contribution to a step; ascending

// Hands out a gradient as floats, `rows_at_once` rows at a time.
class GradientReader {
 public:
  GradientReader(const Gradient& gradient, BlockShape shape, uint64_t rows_at_once, const UpdateLoops& loops = Loops());
  const float* Rows(uint64_t first, uint64_t count);  // good until the next call

 private:
  const Gradient& gradient_;
  const BlockShape shape_;
  const UpdateLoops& loops_;
  std::vector<float> decoded_;
};

// `bytes` has GradientBytes(dtype, shape). INVALID_ARGUMENT names the first element (the first scale) that is NaN or infinite.
absl::Status CheckFinite(DType dtype, BlockShape shape, absl::Span<const uint8_t> bytes);

// sum += gradient.
void AddContribution(BlockShape shape, const Gradient& gradient, float* sum);
// One block's contributions, by rank. A single one is kept as it came; the sum of several is fp32.
Gradient SumContributions(BlockShape shape, std::vector<Gradient> contributions);

// The sum of squares of a gradient, also of one that is still arriving: in double, 16 interleaved lanes joined at the end, the same for every
// way it arrives in. Not finite: some element is NaN or infinite (the squares of floats do not overflow in double).
class SquareSum {
 public:
  SquareSum() = default;
  explicit SquareSum(BlockShape shape) : shape_(shape) {}
  // The first `received` bytes of gradient.bytes are there now.
  void Extend(const Gradient& gradient, uint64_t received);
  double Get() const;

 private:
  BlockShape shape_;
  uint64_t added_ = 0;  // elements
  double lanes_[kSumLanes] = {};
};

double SumOfSquares(BlockShape shape, const Gradient& gradient);

}  // namespace membank
