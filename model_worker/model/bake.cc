#include "model_worker/model/bake.h"

#include <algorithm>
#include <map>
#include <string>

#include "common/bank/block_layout.h"
#include "common/base/status_macros.h"
#include "model_worker/kernels/memory_lora.h"
#include "model_worker/model/bank_levels.h"

namespace membank {
namespace {

using Matrices = std::map<std::string, torch::Tensor>;   // by BlockMatrix::name, [r, columns] in fp32

absl::Status CheckLevel(const BakedLevel& level, const ModelConfig& c) {
  if (level.type == MemoryType::kKv)
    return Unimplemented("kv memory has a softmax beside the anchor's attention, which no plain model has; supported: ffn and lora memory");
  if (level.type == MemoryType::kFfn && !c.ffn.gated)
    return Unimplemented("memories beside the plain FFN of {} cannot become part of it; supported: anchors with a gated FFN", c.architecture);
  int64_t columns = 0;
  for (const BlockMatrix& matrix : MatricesOf(level.type, AnchorShapeOf(c))) columns += static_cast<int64_t>(matrix.columns);
  const int64_t layers = level.layers.empty() ? c.layers : static_cast<int64_t>(level.layers.size()), expected = layers * columns * level.width;
  if (level.block.numel() == expected) return absl::OkStatus();
  return InvalidArgument("a block of {} elements does not fit {} memory in {} layers with r = {}: {} are needed", level.block.numel(),
                         MemoryTypeName(level.type), layers, level.width, expected);
}

// Of one layer; empty when it has no memory.
Matrices MatricesAt(const BakedLevel& level, const ModelConfig& c, int64_t layer) {
  int64_t place = layer;
  if (!level.layers.empty()) {
    const auto it = std::find(level.layers.begin(), level.layers.end(), layer);
    if (it == level.layers.end()) return {};
    place = it - level.layers.begin();
  }
  const torch::Tensor values = level.block.to(torch::kFloat);
  const int64_t layers = level.layers.empty() ? c.layers : static_cast<int64_t>(level.layers.size());
  int64_t at = place * (values.numel() / layers);
  Matrices matrices;
  for (const BlockMatrix& matrix : MatricesOf(level.type, AnchorShapeOf(c))) {
    const int64_t columns = static_cast<int64_t>(matrix.columns);
    matrices[std::string(matrix.name)] = values.narrow(0, at, level.width * columns).view({level.width, columns});
    at += level.width * columns;
  }
  return matrices;
}

// W + 2 B^T A of every projection that has an A.
void MergeLora(const Matrices& matrices, LayerWeights* l) {
  const std::pair<const char*, torch::Tensor*> projections[] = {{"q", &l->q},       {"k", &l->k},   {"v", &l->v},      {"o", &l->o},
                                                                {"gate", &l->gate}, {"up", &l->up}, {"down", &l->down}};
  for (const auto& [name, w] : projections) {
    const auto a = matrices.find(std::string("a_") + name);
    if (a == matrices.end()) continue;
    const torch::Tensor change = torch::matmul(matrices.at(std::string("b_") + name).t(), a->second) * kLoraScale;
    *w = (w->to(torch::kFloat) + change.to(w->device())).to(w->scalar_type());
  }
}

}  // namespace

absl::StatusOr<AnchorWeights> Bake(AnchorWeights anchor, const std::vector<BakedLevel>& path) {
  torch::NoGradGuard no_grad;
  ModelConfig& c = anchor.config;
  int64_t added = 0;
  for (const BakedLevel& level : path) {
    RETURN_IF_ERROR(CheckLevel(level, c));
    if (level.type == MemoryType::kFfn) added += level.width;
  }
  for (int64_t i = 0; i < c.layers; ++i) {
    LayerWeights& l = anchor.layers[i];
    std::vector<torch::Tensor> gate, up, down;   // further units
    for (const BakedLevel& level : path) {
      const Matrices matrices = MatricesAt(level, c, i);
      if (level.type != MemoryType::kFfn) {
        MergeLora(matrices, &l);
        continue;
      }
      const auto units = [&](const char* name) {
        return matrices.empty() ? torch::zeros({level.width, c.hidden}, l.up.options()) : matrices.at(name).to(l.up.options());
      };
      gate.push_back(units("gate"));
      up.push_back(units("up"));
      down.push_back(units("down").t());
    }
    if (added == 0) continue;
    gate.insert(gate.begin(), l.gate);
    up.insert(up.begin(), l.up);
    down.insert(down.begin(), l.down);
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
