// Embeddings of a corpus, computed in chunks that are kept as work files, so that an interrupted build goes on where it was. A chunk file is
// named by the hash of its texts and the embedder: it is reused exactly when both are unchanged.
#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "router/retriever/embedder.h"

namespace membank {

// Row-major, dimension() numbers per text, in the order of `texts`; equal texts (documents that share a retrieve_on) are embedded once. Work files live in `directory`, which is made when it is missing; a
// damaged one is computed again. One thread.
absl::StatusOr<std::vector<float>> EmbedAll(const std::vector<std::string>& texts, Embedder& embedder, const std::string& directory);

}  // namespace membank
