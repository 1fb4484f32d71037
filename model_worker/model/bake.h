// A path of blocks baked into its anchor, which is the same function (mission/paper.md section 3) in a plain model that needs no memory server:
// the FFNs become wider by the sum of r of ffn memory, LoRA is merged into the projections. Pure function.
#pragma once

#include <vector>

#include "absl/status/statusor.h"
#include "model_worker/model/transformer.h"

namespace membank {

struct BakedLevel {
  int64_t width = 0;     // r
  torch::Tensor block;   // flat as MemoryGroup's; any floating type
  MemoryType type = MemoryType::kFfn;
  std::vector<uint32_t> layers;   // as MemoryLevel's. FFN memory in some layers only: the others get as many units of zeros
};

// The result has no fingerprint and no origin: it is a model of its own, and no bank belongs to it.
// UNIMPLEMENTED: kv memory, or ffn memory where the anchor's FFN has no gate: it is no part of a plain model. INVALID_ARGUMENT: a block of another size.
absl::StatusOr<AnchorWeights> Bake(AnchorWeights anchor, const std::vector<BakedLevel>& path);

}  // namespace membank
