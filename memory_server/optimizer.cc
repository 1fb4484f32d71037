#include "memory_server/optimizer.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "common/base/crc32c.h"

namespace membank {
namespace {

// Elements worked on at once, in whole rows: the decoded gradient and the noise stay in the first-level cache.
constexpr uint64_t kChunkElements = 2048;
// The CRC works on three streams of 4 KiB.
constexpr uint64_t kCrcBytes = 12288;

// The CRC of a payload that is written front to back, taken while the bytes are still in a cache.
class TrailingCrc {
 public:
  explicit TrailingCrc(const uint8_t* data) : data_(data) {}
  void AdvanceTo(uint64_t written) {
    const uint64_t whole = (written - done_) / kCrcBytes * kCrcBytes;
    if (whole > 0) Take(whole);
  }
  uint32_t Finish(uint64_t written) {
    Take(written - done_);
    return crc_;
  }

 private:
  void Take(uint64_t bytes) {
    crc_ = ExtendCrc32c(crc_, data_ + done_, bytes);
    done_ += bytes;
  }
  const uint8_t* const data_;
  uint64_t done_ = 0;
  uint32_t crc_ = 0;
};

// One block's update, chunk by chunk.
class BlockUpdate {
 public:
  BlockUpdate(OptimizerKind optimizer, const StepFactors& factors, const BlockArrays& arrays, const UpdateLoops& loops)
      : optimizer_(optimizer), factors_(factors), a_(arrays), loops_(loops),
        kind_(a_.payload == DType::kF32 ? WeightKind::kF32 : a_.weights != nullptr ? WeightKind::kMaster : WeightKind::kStochastic) {}

  uint32_t Run(const Gradient& gradient) {
    const uint64_t element = DTypeBytes(a_.payload), rows_at_once = std::max<uint64_t>(1, kChunkElements / a_.shape.row);
    TrailingCrc crc(a_.payload_out);
    GradientReader reader(gradient, a_.shape, rows_at_once, loops_);
    for (uint64_t row = 0; row < a_.shape.rows; row += rows_at_once) {
      const uint64_t rows = std::min(rows_at_once, a_.shape.rows - row);
      Step(row, rows, reader.Rows(row, rows));
      crc.AdvanceTo((row + rows) * a_.shape.row * element);
    }
    return crc.Finish(a_.shape.elements() * element);
  }

 private:
  void Step(uint64_t row, uint64_t rows, const float* g) {
    const uint64_t first = row * a_.shape.row, n = rows * a_.shape.row, element = DTypeBytes(a_.payload);
    WeightSpan w;
    w.out = a_.payload_out + first * element;
    if (kind_ == WeightKind::kMaster) w.master = a_.weights + first;
    else w.in = a_.payload_in + first * element;
    if (kind_ == WeightKind::kStochastic) w.noise = Noise(first, n);
    switch (optimizer_) {
      case OptimizerKind::kAdamW: return loops_.adamw(kind_, factors_, n, g, w, a_.m + first, a_.v + first);
      case OptimizerKind::kRowWiseAdamW: return loops_.row_wise_adamw(kind_, factors_, rows, a_.shape.row, g, w, a_.m + first, a_.v + row);
      case OptimizerKind::kSgd: return loops_.sgd(kind_, factors_, n, g, w);
    }
  }

  const uint16_t* Noise(uint64_t first, uint64_t n) {
    const uint64_t group = first / kNoiseGroup, groups = (first + n + kNoiseGroup - 1) / kNoiseGroup - group;
    noise_.resize(std::max<size_t>(noise_.size(), groups * kNoiseGroup));
    loops_.noise(a_.noise, group, groups, noise_.data());
    return noise_.data() + first % kNoiseGroup;
  }

  const OptimizerKind optimizer_;
  const StepFactors factors_;
  const BlockArrays a_;
  const UpdateLoops& loops_;
  const WeightKind kind_;
  std::vector<uint16_t> noise_;
};

// base^exponent by squaring: the same bits everywhere, which libm does not promise.
double Power(double base, uint64_t exponent) {
  double result = 1;
  for (; exponent > 0; exponent >>= 1, base *= base)
    if (exponent & 1) result *= base;
  return result;
}

uint64_t DecaysOf(DecayPolicy policy, uint64_t missed_steps) {
  return policy == DecayPolicy::kNone ? 0 : policy == DecayPolicy::kMissed ? missed_steps : 1;
}

}  // namespace

StepFactors MakeStepFactors(const RunSettings& run, const ApplyParameters& parameters, uint64_t touched_steps, uint64_t missed_steps) {
  const double rate = parameters.learning_rate;
  StepFactors factors;
  factors.scale = parameters.scale;
  factors.keep = static_cast<float>(Power(1.0 - rate * parameters.weight_decay, DecaysOf(run.decay, missed_steps)));
  factors.rate = parameters.learning_rate;
  if (run.optimizer == OptimizerKind::kSgd) return factors;
  factors.beta1 = run.beta1;
  factors.one_minus_beta1 = static_cast<float>(1.0 - run.beta1);
  factors.beta2 = run.beta2;
  factors.one_minus_beta2 = static_cast<float>(1.0 - run.beta2);
  factors.epsilon = run.epsilon;
  factors.rate = static_cast<float>(rate / (1.0 - Power(run.beta1, touched_steps)));
  factors.inverse_root_correction2 = static_cast<float>(1.0 / std::sqrt(1.0 - Power(run.beta2, touched_steps)));
  return factors;
}

uint32_t UpdateBlock(OptimizerKind optimizer, const StepFactors& factors, const Gradient& gradient, const BlockArrays& arrays,
                     const UpdateLoops& loops) {
  return BlockUpdate(optimizer, factors, arrays, loops).Run(gradient);
}

}  // namespace membank
