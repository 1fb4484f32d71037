// Text -> path: embed, then greedy descent of the tree. Any thread.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "common/bank/cluster_tree.h"
#include "router/retriever/embedder.h"

namespace membank {

struct Resolution {
  BlockPath path;
  std::vector<PathStep> steps;  // one per level
};

// FAILED_PRECONDITION when the tree was fitted with another embedder (both fingerprints named).
absl::Status CheckFittedWith(const ClusterTree& tree, const Embedder& embedder);

// The path of an embedding, by greedy descent.
absl::StatusOr<Resolution> ResolveIn(const ClusterTree& tree, const std::vector<float>& embedding);

class Retriever {
 public:
  // FAILED_PRECONDITION as CheckFittedWith.
  static absl::StatusOr<std::unique_ptr<Retriever>> Create(std::unique_ptr<Embedder> embedder, ClusterTree tree);
  absl::StatusOr<std::vector<Resolution>> Resolve(const std::vector<std::string>& texts);
  const ClusterTree& tree() const { return tree_; }
  Embedder& embedder() { return *embedder_; }

 private:
  Retriever(std::unique_ptr<Embedder> embedder, ClusterTree tree) : embedder_(std::move(embedder)), tree_(std::move(tree)) {}
  std::unique_ptr<Embedder> embedder_;
  ClusterTree tree_;
};

}  // namespace membank
