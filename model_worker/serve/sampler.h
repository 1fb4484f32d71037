// Chooses the next token from one row of logits: greedy, or temperature, top-k and top-p in that order. The draws are a pure function of
// (seed, how many were made), so an answer does not depend on what else is in the batch. One sequence, one thread; no errors.
#pragma once

#include <vector>

#include "absl/types/span.h"
#include "model_worker/serve/engine.h"

namespace membank {

class Sampler {
 public:
  explicit Sampler(const SamplingParameters& parameters) : parameters_(parameters) {}

  int32_t Sample(absl::Span<const float> logits);

 private:
  double NextUniform();  // [0, 1)

  SamplingParameters parameters_;
  uint64_t draws_ = 0;
  std::vector<int32_t> order_;   // candidates, reused from draw to draw
};

// The largest value, NaNs left out: -inf when there is nothing else.
float MaxLogit(absl::Span<const float> logits);
// The lowest index of the largest value; the size when all are NaN.
int32_t ArgMax(absl::Span<const float> logits);

// The `count` largest logits as log-probabilities, best first; `log_sum` is the row's log-sum-exp.
std::vector<TokenAlternative> TopLogprobs(absl::Span<const float> logits, float log_sum, uint32_t count);

}  // namespace membank
