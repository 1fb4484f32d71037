// Squared L2 distance in 32 independent lanes: without -ffast-math a compiler may not vectorise a float sum, and this order of additions
// is fixed, so one build gives the same result every time. Used by the tree's descent and by its fitting, so that both see equal numbers.
#pragma once

#include <cstddef>

namespace membank {

inline float SquaredDistance(const float* a, const float* b, size_t n) {
  constexpr size_t kLanes = 32;
  float lanes[kLanes] = {};
  size_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    for (size_t j = 0; j < kLanes; ++j) {
      const float d = a[i + j] - b[i + j];
      lanes[j] += d * d;
    }
  }
  float sum = 0;
  for (; i < n; ++i) sum += (a[i] - b[i]) * (a[i] - b[i]);
  for (size_t j = 0; j < kLanes; ++j) sum += lanes[j];
  return sum;
}

}  // namespace membank
