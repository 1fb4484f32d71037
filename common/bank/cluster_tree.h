// The tree of topics: k centroids per node, p levels; greedy descent from the root (mission/paper.md section 2). One safetensors file:
// "centroids.1" [k, c], "centroids.2" [k^2, c], ... fp32, row = cluster; metadata: embedder hash, fan_out, depth, seed, corpus.
// Immutable after loading; any thread.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "common/bank/block.h"

namespace membank {

struct PathStep {          // one level of a descent
  uint32_t cluster = 0;
  float distance = 0;      // squared L2 between the embedding and the chosen centroid
};

class ClusterTree {
 public:
  // centroids[l-1] holds k^l rows of `dimension` floats.
  static absl::StatusOr<ClusterTree> Create(uint32_t fan_out, uint32_t dimension, std::vector<std::vector<float>> centroids,
                                            std::map<std::string, std::string> metadata);
  static absl::StatusOr<ClusterTree> Load(const std::string& path);
  absl::Status Save(const std::string& path) const;

  uint32_t fan_out() const { return fan_out_; }
  uint32_t depth() const { return static_cast<uint32_t>(centroids_.size()); }
  uint32_t dimension() const { return dimension_; }
  const std::map<std::string, std::string>& metadata() const { return metadata_; }
  absl::Span<const float> centroid(BlockId id) const;
  // XXH3-128 over shape, centroids and embedder hash, 32 hex digits: the bank spec's tree_fingerprint.
  std::string Fingerprint() const;

  // p * k comparisons. INVALID_ARGUMENT when the embedding's size is not dimension().
  absl::StatusOr<std::vector<PathStep>> Descend(absl::Span<const float> embedding) const;
  BlockPath PathOf(const std::vector<PathStep>& steps) const;

 private:
  uint32_t fan_out_ = 0, dimension_ = 0;
  std::vector<std::vector<float>> centroids_;
  std::map<std::string, std::string> metadata_;
};

}  // namespace membank
