// What each architecture calls its tensors in a Hugging Face folder, and how it packs several into one. Pure functions.
#pragma once

#include <string>
#include <vector>

#include "model_worker/model/transformer.h"

namespace membank {

// The model_type of every supported architecture, and what config.json's "architectures" calls it.
struct ArchitectureName {
  const char *model_type, *causal_lm;
};
absl::Span<const ArchitectureName> SupportedArchitectures();
absl::Status UnsupportedArchitecture(const std::string& found, const std::string& where);   // UNIMPLEMENTED, lists those above

// A member of LayerWeights. Where several are stored as one tensor this is part `part` of [groups, parts, rows of a part / groups, ...].
struct LayerTensor {
  torch::Tensor LayerWeights::*member;
  std::string stored;             // name after LayerPrefix
  std::vector<int64_t> shape;     // of the member
  int64_t part = 0, parts = 1, groups = 1;

  std::vector<int64_t> StoredShape() const;
  torch::Tensor Unpack(const torch::Tensor& stored_tensor) const;          // the member
};
// In the order of AnchorWeights::Named; parts of one stored tensor lie side by side.
std::vector<LayerTensor> LayerTensors(const ModelConfig& config);
torch::Tensor Pack(const std::vector<torch::Tensor>& members, int64_t groups);   // the stored tensor of parts 0, 1, ...

std::string LayerPrefix(const ModelConfig& config, int64_t layer);   // "model.layers.3."
struct OuterNames {
  std::string embedding, final_norm, final_norm_bias, head;
};
OuterNames OuterNamesOf(const ModelConfig& config);

}  // namespace membank
