// Balanced k-means of one node of the tree (mission/paper.md section 2): k-means++ seeding, then expectation-maximisation on a fresh
// sample of the node's examples a step; a cluster with more than its fair share of a step's assignments is split evenly at random with the
// smallest cluster. The same inputs and seed give the same centroids. Pure function; any thread.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/types/span.h"

namespace membank {

struct KMeansOptions {
  uint32_t clusters = 16;
  uint32_t steps = 20;               // EM steps
  uint32_t examples_per_step = 6400; // a node with no more examples uses all of them in every step
  double balance = 1.5;              // a cluster may take this many times 1/clusters of a step's assignments
  uint32_t restarts = 4;             // seedings tried when one step sees the whole node; the best result wins
};

// Row-major vectors of one size, kept by the caller.
struct Vectors {
  const float* data = nullptr;
  uint32_t dimension = 0;
  const float* row(size_t i) const { return data + i * dimension; }
};

// `rows`: the node's examples as rows of `vectors`, at least one. Returns clusters * dimension numbers. When the examples have fewer
// distinct values than clusters, each distinct value is a centroid and the rest are copies of the first one, behind it, so that a
// descent (the first of equals wins) always lands on a real one.
std::vector<float> BalancedKMeans(const Vectors& vectors, absl::Span<const uint32_t> rows, const KMeansOptions& options, uint64_t seed);

// The nearest of `count` centroids (row-major), the first of equals; its squared distance in `distance`.
uint32_t Nearest(const float* vector, const float* centroids, uint32_t count, uint32_t dimension, float* distance);

}  // namespace membank
