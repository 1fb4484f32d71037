#include "router/retriever/retriever.h"

#include <utility>

#include "common/base/status_macros.h"

namespace membank {

absl::Status CheckFittedWith(const ClusterTree& tree, const Embedder& embedder) {
  const auto fitted_with = tree.metadata().find("embedder");
  const std::string tree_embedder = fitted_with == tree.metadata().end() ? "(none)" : fitted_with->second;
  if (tree_embedder != embedder.Fingerprint()) {
    return FailedPrecondition("the cluster tree was fitted with embedder {}, but the embedder given is {}; use the embedder of the tree or fit "
                              "the tree again",
                              tree_embedder, embedder.Fingerprint());
  }
  if (tree.dimension() != embedder.dimension()) {
    return FailedPrecondition("the cluster tree has dimension {}, but the embedder writes {} numbers", tree.dimension(), embedder.dimension());
  }
  return absl::OkStatus();
}

absl::StatusOr<Resolution> ResolveIn(const ClusterTree& tree, const std::vector<float>& embedding) {
  ASSIGN_OR_RETURN(std::vector<PathStep> steps, tree.Descend(embedding));
  const BlockPath path = tree.PathOf(steps);
  return Resolution{path, std::move(steps)};
}

absl::StatusOr<std::unique_ptr<Retriever>> Retriever::Create(std::unique_ptr<Embedder> embedder, ClusterTree tree) {
  RETURN_IF_ERROR(CheckFittedWith(tree, *embedder));
  return std::unique_ptr<Retriever>(new Retriever(std::move(embedder), std::move(tree)));
}

absl::StatusOr<std::vector<Resolution>> Retriever::Resolve(const std::vector<std::string>& texts) {
  ASSIGN_OR_RETURN(const std::vector<std::vector<float>> embeddings, embedder_->Embed(texts));
  std::vector<Resolution> resolutions;
  resolutions.reserve(texts.size());
  for (const std::vector<float>& embedding : embeddings) {
    ASSIGN_OR_RETURN(resolutions.emplace_back(), ResolveIn(tree_, embedding));
  }
  return resolutions;
}

}  // namespace membank
