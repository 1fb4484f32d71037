// Fits a cluster tree to embeddings, root to leaves: each node is split by balanced k-means (kmeans.h) on the examples whose descent
// reaches it (mission/paper.md section 2). Deterministic: same embeddings, options and seed, same tree, whatever the number of threads.
#pragma once

#include <functional>
#include <map>
#include <string>

#include "absl/status/statusor.h"
#include "common/bank/cluster_tree.h"
#include "router/retriever/kmeans.h"

namespace membank {

struct TreeOptions {
  uint32_t fan_out = 16;
  uint32_t depth = 4;
  uint64_t seed = 1;
  uint32_t steps = 20;
  uint32_t examples_per_step = 6400;
};

// `count` embeddings. `metadata` goes into the tree ("embedder" is the embedder's fingerprint). `progress(done, total)` counts nodes.
// INVALID_ARGUMENT names what is out of range: fan_out 2..4096, depth 1..8, fan_out^depth <= 2^24, at least one embedding, finite numbers.
absl::StatusOr<ClusterTree> FitTree(const Vectors& embeddings, size_t count, const TreeOptions& options,
                                    std::map<std::string, std::string> metadata,
                                    const std::function<void(uint64_t, uint64_t)>& progress = {});

}  // namespace membank
