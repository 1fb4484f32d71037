// Text -> paths, one per tree, as the router needs it. The program uses the retriever (router/main.cc); tests use a fake, so that the router links no
// Torch. Thread-safe.
#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "router/retriever/retriever.h"

namespace membank {

struct TreeFacts {
  uint32_t fan_out = 0, depth = 0, dimension = 0;
  std::string tree_fingerprint, embedder_fingerprint;
};

class PathFinder {
 public:
  virtual ~PathFinder() = default;
  virtual const std::vector<TreeFacts>& trees() const = 0;  // at least one, all fitted with one embedder
  // [text][tree]; each text is embedded once.
  virtual absl::StatusOr<std::vector<std::vector<Resolution>>> Resolve(const std::vector<std::string>& texts) = 0;
  virtual absl::StatusOr<std::vector<std::vector<float>>> Embed(const std::vector<std::string>& texts) = 0;
};

}  // namespace membank
