// Sentence embeddings: all-MiniLM-L6-v2 (BERT, 6 layers, mean pooling, L2 normalised, c = 384) from its Hugging Face directory.
// Equal to sentence-transformers within cosine 0.99999. No Torch in this header. Embed may be called from any thread; calls run one
// at a time.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace membank {

class Embedder {
 public:
  virtual ~Embedder() = default;
  virtual uint32_t dimension() const = 0;
  virtual std::string Fingerprint() const = 0;   // hash of the weights; kept in the tree's metadata
  // One normalised vector per text. Texts longer than `max_tokens` (256) are cut, as sentence-transformers does.
  virtual absl::StatusOr<std::vector<std::vector<float>>> Embed(const std::vector<std::string>& texts) = 0;
};

absl::StatusOr<std::unique_ptr<Embedder>> LoadMiniLm(const std::string& directory);

}  // namespace membank
