#include "model_worker/serve/sampler.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "common/bank/block_init.h"
#include "common/base/status_macros.h"

namespace membank {
namespace {

constexpr size_t kFirstCandidates = 1024;  // usually enough for top_p; all are sorted when not

// The best `count` indices, best first; ties in index order.
void TopIndices(absl::Span<const float> logits, size_t count, std::vector<int32_t>& order) {
  order.resize(logits.size());
  std::iota(order.begin(), order.end(), 0);
  count = std::min(count, order.size());
  std::partial_sort(order.begin(), order.begin() + count, order.end(), [&](int32_t a, int32_t b) {
    return logits[a] != logits[b] ? logits[a] > logits[b] : a < b;
  });
  order.resize(count);
}

}  // namespace

absl::Status SamplingParameters::Validate(int32_t vocab) const {
  if (!(temperature >= 0 && temperature <= 100)) return InvalidArgument("temperature is {}; allowed: 0 (greedy) to 100", temperature);
  if (!(top_p > 0 && top_p <= 1)) return InvalidArgument("top_p is {}; allowed: above 0, at most 1", top_p);
  if (stop.size() > 16) return InvalidArgument("{} stop strings; at most 16 are allowed", stop.size());
  for (const std::string& text : stop) {
    if (text.empty() || text.size() > 256) return InvalidArgument("a stop string has {} bytes; allowed: 1 to 256", text.size());
    if (const size_t at = FindInvalidUtf8(text); at != std::string_view::npos) {
      return InvalidArgument("a stop string is not UTF-8 at byte {}; send UTF-8", at);
    }
  }
  if (stop_tokens.size() > 64) return InvalidArgument("{} stop tokens; at most 64 are allowed", stop_tokens.size());
  for (int32_t id : stop_tokens) {
    if (id < 0 || id >= vocab) return InvalidArgument("stop token {} is not in the vocabulary; allowed: 0 to {}", id, vocab - 1);
  }
  if (logprobs.has_value() && *logprobs > 20) return InvalidArgument("logprobs is {}; allowed: 0 to 20", *logprobs);
  return absl::OkStatus();
}

double Sampler::NextUniform() {
  const std::array<uint32_t, 4> counter = {static_cast<uint32_t>(draws_), static_cast<uint32_t>(draws_ >> 32), 0, 0x53616d70};
  const std::array<uint32_t, 4> words =
      Philox4x32(counter, {static_cast<uint32_t>(parameters_.seed), static_cast<uint32_t>(parameters_.seed >> 32)});
  ++draws_;
  const uint64_t bits = (uint64_t{words[0]} << 32 | words[1]) >> 11;
  return static_cast<double>(bits) * 0x1.0p-53;
}

int32_t Sampler::Sample(absl::Span<const float> logits) {
  if (parameters_.temperature == 0) return ArgMax(logits);
  const float best = MaxLogit(logits);
  const double scale = 1.0 / parameters_.temperature;
  const bool all = parameters_.top_k == 0 || parameters_.top_k >= logits.size();

  // Candidates and their weights, relative to the best one's.
  double total = 0;
  if (all) {
    if (parameters_.top_p >= 1) {
      order_.resize(logits.size());
      std::iota(order_.begin(), order_.end(), 0);
    }
    for (float logit : logits) total += std::exp((logit - best) * scale);
  } else {
    TopIndices(logits, parameters_.top_k, order_);
    for (int32_t id : order_) total += std::exp((logits[id] - best) * scale);
  }

  double kept = total;
  if (parameters_.top_p < 1) {
    for (size_t count = all ? kFirstCandidates : order_.size();; count = logits.size()) {
      if (all) TopIndices(logits, count, order_);
      kept = 0;
      size_t taken = 0;
      while (taken < order_.size() && kept < parameters_.top_p * total) kept += std::exp((logits[order_[taken++]] - best) * scale);
      const bool enough = kept >= parameters_.top_p * total || order_.size() == logits.size() || !all;
      if (!enough) continue;
      order_.resize(taken);
      break;
    }
  }

  double left = NextUniform() * kept;
  for (int32_t id : order_) {
    left -= std::exp((logits[id] - best) * scale);
    if (left < 0) return id;
  }
  return order_.back();  // rounding
}

float MaxLogit(absl::Span<const float> logits) {
  constexpr size_t kLanes = 16;  // independent maxima, so that the compiler uses vector instructions
  float lanes[kLanes];
  std::fill(lanes, lanes + kLanes, -std::numeric_limits<float>::infinity());
  size_t i = 0;
  for (; i + kLanes <= logits.size(); i += kLanes) {
    for (size_t lane = 0; lane < kLanes; ++lane) lanes[lane] = logits[i + lane] > lanes[lane] ? logits[i + lane] : lanes[lane];
  }
  float best = *std::max_element(lanes, lanes + kLanes);
  for (; i < logits.size(); ++i) best = std::max(best, logits[i]);
  return best;
}

int32_t ArgMax(absl::Span<const float> logits) {
  return static_cast<int32_t>(std::find(logits.begin(), logits.end(), MaxLogit(logits)) - logits.begin());
}

std::vector<TokenAlternative> TopLogprobs(absl::Span<const float> logits, float log_sum, uint32_t count) {
  std::vector<TokenAlternative> top;
  if (count == 0) return top;
  std::vector<int32_t> order;
  TopIndices(logits, count, order);
  for (int32_t id : order) top.push_back({id, logits[id] - log_sum});
  return top;
}

}  // namespace membank
