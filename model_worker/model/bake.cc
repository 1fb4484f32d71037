#include "model_worker/model/bake.h"

#include "common/base/status_macros.h"

namespace membank {

absl::StatusOr<AnchorWeights> Bake(AnchorWeights anchor, const std::vector<BakedLevel>& path) {
  torch::NoGradGuard no_grad;
  ModelConfig& c = anchor.config;
  if (!c.ffn.gated)
    return Unimplemented("memories beside the plain FFN of {} cannot become part of it; supported: anchors with a gated FFN", c.architecture);
  int64_t added = 0;
  std::vector<torch::Tensor> blocks;   // [L, 3, r, d] in the anchor's type
  for (const BakedLevel& level : path) {
    const int64_t expected = c.layers * 3 * level.width * c.hidden;
    if (level.block.numel() != expected)
      return InvalidArgument("a block of {} elements does not fit {} layers of width {} with r = {}: {} are needed", level.block.numel(), c.layers, c.hidden,
                             level.width, expected);
    blocks.push_back(level.block.to(anchor.embedding.options()).view({c.layers, 3, level.width, c.hidden}));
    added += level.width;
  }
  for (int64_t i = 0; i < c.layers; ++i) {
    LayerWeights& l = anchor.layers[i];
    std::vector<torch::Tensor> gate{l.gate}, up{l.up}, down{l.down};
    for (const torch::Tensor& block : blocks) {
      gate.push_back(block[i][0]);
      up.push_back(block[i][1]);
      down.push_back(block[i][2].t());
    }
    l.gate = torch::cat(gate, 0);
    l.up = torch::cat(up, 0);
    l.down = torch::cat(down, 1).contiguous();
    for (torch::Tensor* bias : {&l.gate_bias, &l.up_bias}) {
      if (bias->defined()) *bias = torch::cat({*bias, torch::zeros({added}, bias->options())}, 0);
    }
  }
  c.ffn_inner += added;
  anchor.fingerprint = anchor.origin = "";
  return anchor;
}

}  // namespace membank
