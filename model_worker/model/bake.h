// A path of FFN blocks baked into its anchor: the layers' FFNs become wider by the sum of r, which is the same function (mission/paper.md section
// 3), in a plain model that needs no memory server. Pure function.
#pragma once

#include <vector>

#include "absl/status/statusor.h"
#include "model_worker/model/transformer.h"

namespace membank {

struct BakedLevel {
  int64_t width = 0;     // r
  torch::Tensor block;   // flat [L * 3 * r * d] as MemoryGroup's; any floating type
};

// The result has no fingerprint and no origin: it is a model of its own, and no bank belongs to it.
// UNIMPLEMENTED: the anchor's FFN has no gate, so that a gated memory is no part of it. INVALID_ARGUMENT: a block of another size.
absl::StatusOr<AnchorWeights> Bake(AnchorWeights anchor, const std::vector<BakedLevel>& path);

}  // namespace membank
