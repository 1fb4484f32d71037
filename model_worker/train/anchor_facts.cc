#include "model_worker/train/anchor_facts.h"

#include "common/base/status_macros.h"
#include "model_worker/model/bank_levels.h"
#include "model_worker/model/weights.h"

namespace membank {

absl::StatusOr<AnchorFacts> ReadAnchorFacts(const std::string& path) {
  ASSIGN_OR_RETURN(const AnchorWeights anchor, LoadAnchor(path, torch::kBFloat16));
  AnchorFacts facts;
  facts.shape = AnchorShapeOf(anchor.config);
  facts.fingerprint = anchor.origin;
  for (const auto& [name, tensor] : anchor.Named()) facts.parameters += tensor.numel();
  return facts;
}

}  // namespace membank
