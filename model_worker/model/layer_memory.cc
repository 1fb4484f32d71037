#include "model_worker/model/layer_memory.h"

#include <algorithm>

#include "common/bank/block_layout.h"
#include "model_worker/kernels/memory_ffn.h"
#include "model_worker/kernels/memory_kv.h"
#include "model_worker/kernels/memory_lora.h"
#include "model_worker/model/bank_levels.h"

namespace membank {
namespace {

// Of one unit in one layer.
int64_t UnitElements(const MemoryLevel& level, const ModelConfig& config) {
  int64_t columns = 0;
  for (const BlockMatrix& matrix : MatricesOf(level.type, AnchorShapeOf(config))) columns += static_cast<int64_t>(matrix.columns);
  return columns;
}

// Place of an anchor's layer among those of a block; -1: it has no memory.
int64_t BlockLayer(const MemoryLevel& level, int64_t layer) {
  if (level.layers.empty()) return layer;
  const auto it = std::find(level.layers.begin(), level.layers.end(), layer);
  return it == level.layers.end() ? -1 : it - level.layers.begin();
}

std::vector<torch::Tensor>* Saved(std::vector<std::vector<torch::Tensor>> LayerMemoryTape::*list, LayerMemoryTape* tape, size_t number) {
  if (tape == nullptr) return nullptr;
  (tape->*list).resize(std::max((tape->*list).size(), number + 1));
  return &(tape->*list)[number];
}

std::vector<MemoryLoraGroup> LoraGroups(const MemoryLevel& level, int64_t begin, int64_t in, const std::vector<int64_t>& outs) {
  std::vector<MemoryLoraGroup> groups;
  groups.reserve(level.groups.size());
  for (const MemoryGroup& group : level.groups)
    groups.push_back(MemoryLoraSlice(group.block, group.gradient, begin, level.width, in, outs, group.rows));
  return groups;
}

// Elements of a slice that LoraGroups makes.
int64_t LoraElements(const MemoryLevel& level, int64_t in, const std::vector<int64_t>& outs) {
  int64_t columns = in * static_cast<int64_t>(outs.size());
  for (const int64_t out : outs) columns += out;
  return columns * level.width;
}

std::vector<MemoryFfnGroup> FfnGroups(const MemoryLevel& level, int64_t layer, int64_t hidden) {
  std::vector<MemoryFfnGroup> groups;
  groups.reserve(level.groups.size());
  for (const MemoryGroup& group : level.groups)
    groups.push_back(MemoryFfnSlice(group.block, group.gradient, layer, level.width, hidden, group.rows));
  return groups;
}

std::vector<torch::Tensor> Halves(const torch::Tensor& x) {
  const int64_t half = x.size(1) / 2;
  return {x.narrow(1, 0, half), x.narrow(1, half, half)};
}

}  // namespace

LayerMemory::LayerMemory(const MemoryBatch& memory, const ModelConfig& config, int64_t layer)
    : config_(config), q_(config.heads * config.head_dim), kv_(config.kv_heads * config.head_dim) {
  for (const MemoryLevel& level : memory) {
    const int64_t place = BlockLayer(level, layer);
    if (place >= 0) levels_.push_back({&level, place, place * level.width * UnitElements(level, config)});
  }
}

bool LayerMemory::Has(MemoryType type) const {
  return std::any_of(levels_.begin(), levels_.end(), [&](const Level& level) { return level.level->type == type; });
}

template <typename Visit>
void LayerMemory::ForEach(MemoryType type, Visit visit) const {
  for (size_t i = 0; i < levels_.size(); ++i)
    if (levels_[i].level->type == type) visit(i, levels_[i]);
}

std::vector<torch::Tensor> LayerMemory::Columns(const torch::Tensor& qkv, MemoryType type) const {
  if (type == MemoryType::kLoraQk) return {qkv.narrow(1, 0, q_), qkv.narrow(1, q_, kv_)};
  return {qkv.narrow(1, q_ + kv_, kv_)};
}

template <typename Visit>
void LayerMemory::ForEachKvBank(Visit visit) const {
  size_t bank = 0;
  for (size_t i = 0; i < levels_.size();) {
    std::vector<MemoryKvGroup> groups;
    const Level& first = levels_[i];
    for (; i < levels_.size() && levels_[i].level->bank == first.level->bank; ++i) {
      const MemoryLevel& level = *levels_[i].level;
      if (level.type != MemoryType::kKv) continue;
      for (const MemoryGroup& group : level.groups)
        groups.push_back(MemoryKvSlice(group.block, group.gradient, levels_[i].begin, level.width, q_, group.rows));
    }
    if (!groups.empty()) visit(groups, bank++);
  }
}

double LayerMemory::HeadScale() const { return Heads{config_.heads, config_.kv_heads, config_.head_dim, config_.attention_scale}.Scale(); }

// --- Forward ---------------------------------------------------------------------------------------------------------------------------------

void LayerMemory::AddToQkv(const torch::Tensor& x, torch::Tensor& qkv, LayerMemoryTape* tape) const {
  const auto add = [&](MemoryType type, const std::vector<int64_t>& outs) {
    ForEach(type, [&](size_t i, const Level& at) {
      MemoryLoraForward(x, LoraGroups(*at.level, at.begin, config_.hidden, outs), Columns(qkv, type), Saved(&LayerMemoryTape::first, tape, i));
    });
  };
  add(MemoryType::kLoraQk, {q_, kv_});
  add(MemoryType::kLoraVo, {kv_});
}

torch::Tensor LayerMemory::Query(const torch::Tensor& qkv) const {
  return Has(MemoryType::kKv) ? qkv.narrow(1, 0, q_).clone(torch::MemoryFormat::Contiguous) : torch::Tensor();
}

torch::Tensor LayerMemory::AddToAttention(const torch::Tensor& query, const torch::Tensor& attention, LayerMemoryTape* tape) const {
  if (!query.defined()) return attention;
  torch::Tensor attended = attention.clone();
  ForEachKvBank([&](const std::vector<MemoryKvGroup>& groups, size_t) {
    torch::Tensor log_sums = MemoryKvForward(query, config_.heads, HeadScale(), groups, attended);
    if (tape != nullptr) tape->log_sums.push_back(std::move(log_sums));
  });
  if (tape != nullptr) tape->query = query;
  return attended;
}

void LayerMemory::AddToAttentionOut(const torch::Tensor& attended, torch::Tensor& out, LayerMemoryTape* tape) const {
  ForEach(MemoryType::kLoraVo, [&](size_t i, const Level& at) {
    const int64_t begin = at.begin + LoraElements(*at.level, config_.hidden, {kv_});
    MemoryLoraForward(attended, LoraGroups(*at.level, begin, q_, {config_.hidden}), {out}, Saved(&LayerMemoryTape::second, tape, i));
  });
}

void LayerMemory::AddToFfnIn(const torch::Tensor& x, torch::Tensor& in, LayerMemoryTape* tape) const {
  ForEach(MemoryType::kLoraFfn, [&](size_t i, const Level& at) {
    MemoryLoraForward(x, LoraGroups(*at.level, at.begin, config_.hidden, {config_.ffn_inner, config_.ffn_inner}), Halves(in),
                      Saved(&LayerMemoryTape::first, tape, i));
  });
}

void LayerMemory::AddToFfnOut(const torch::Tensor& x, const torch::Tensor& h, torch::Tensor& out, LayerMemoryTape* tape) const {
  ForEach(MemoryType::kLoraFfn, [&](size_t i, const Level& at) {
    const int64_t begin = at.begin + LoraElements(*at.level, config_.hidden, {config_.ffn_inner, config_.ffn_inner});
    MemoryLoraForward(h, LoraGroups(*at.level, begin, config_.ffn_inner, {config_.hidden}), {out}, Saved(&LayerMemoryTape::second, tape, i));
  });
  ForEach(MemoryType::kFfn, [&](size_t i, const Level& at) {
    MemoryFfnForward(config_.MemoryActivation(), x, FfnGroups(*at.level, at.place, config_.hidden), out, Saved(&LayerMemoryTape::first, tape, i));
  });
}

// --- Backward --------------------------------------------------------------------------------------------------------------------------------

void LayerMemory::FfnOutBackward(const torch::Tensor& d_out, const torch::Tensor& in, const LayerMemoryTape& tape, torch::Tensor dh) const {
  if (!InsideFfn()) return;
  const torch::Tensor h = Activate(config_.ffn, in);
  ForEach(MemoryType::kLoraFfn, [&](size_t i, const Level& at) {
    const int64_t begin = at.begin + LoraElements(*at.level, config_.hidden, {config_.ffn_inner, config_.ffn_inner});
    MemoryLoraBackward({d_out}, h, LoraGroups(*at.level, begin, config_.ffn_inner, {config_.hidden}), tape.second[i], dh);
  });
}

void LayerMemory::FfnInBackward(const torch::Tensor& d_out, const torch::Tensor& d_in, const torch::Tensor& x, const LayerMemoryTape& tape,
                                torch::Tensor dx) const {
  ForEach(MemoryType::kFfn, [&](size_t i, const Level& at) {
    MemoryFfnBackward(config_.MemoryActivation(), d_out, x, FfnGroups(*at.level, at.place, config_.hidden), tape.first[i], dx);
  });
  ForEach(MemoryType::kLoraFfn, [&](size_t i, const Level& at) {
    const std::vector<int64_t> outs = {config_.ffn_inner, config_.ffn_inner};
    MemoryLoraBackward(Halves(d_in), x, LoraGroups(*at.level, at.begin, config_.hidden, outs), tape.first[i], dx);
  });
}

void LayerMemory::AttentionOutBackward(const torch::Tensor& d_out, const torch::Tensor& attended, const LayerMemoryTape& tape,
                                       torch::Tensor d_attended) const {
  ForEach(MemoryType::kLoraVo, [&](size_t i, const Level& at) {
    const int64_t begin = at.begin + LoraElements(*at.level, config_.hidden, {kv_});
    MemoryLoraBackward({d_out}, attended, LoraGroups(*at.level, begin, q_, {config_.hidden}), tape.second[i], d_attended);
  });
}

void LayerMemory::AttentionBackward(const torch::Tensor& d_attended, const LayerMemoryTape& tape, torch::Tensor d_qkv) const {
  ForEachKvBank([&](const std::vector<MemoryKvGroup>& groups, size_t bank) {
    MemoryKvBackward(d_attended, tape.query, config_.heads, HeadScale(), groups, tape.log_sums[bank], d_qkv.narrow(1, 0, q_));
  });
}

void LayerMemory::QkvBackward(const torch::Tensor& d_qkv, const torch::Tensor& x, const LayerMemoryTape& tape, torch::Tensor dx) const {
  const auto backward = [&](MemoryType type, const std::vector<int64_t>& outs) {
    ForEach(type, [&](size_t i, const Level& at) {
      MemoryLoraBackward(Columns(d_qkv, type), x, LoraGroups(*at.level, at.begin, config_.hidden, outs), tape.first[i], dx);
    });
  };
  backward(MemoryType::kLoraQk, {q_, kv_});
  backward(MemoryType::kLoraVo, {kv_});
}

// --- The batch -------------------------------------------------------------------------------------------------------------------------------

void CheckMemory(const MemoryBatch& memory, const ModelConfig& config) {
  for (const MemoryLevel& level : memory) {
    const int64_t layers = level.layers.empty() ? config.layers : static_cast<int64_t>(level.layers.size());
    const int64_t elements = layers * level.width * UnitElements(level, config);
    for (const MemoryGroup& group : level.groups) {
      TORCH_CHECK(group.block.numel() == elements, "a block of ", std::string(MemoryTypeName(level.type)), " memory of width ", level.width, " in ", layers,
                  " layers has ", elements, " elements, this one ", group.block.numel());
    }
  }
}

int64_t LowestTrainedLayer(const MemoryBatch& memory, int64_t layers) {
  int64_t lowest = layers;
  for (const MemoryLevel& level : memory) {
    const bool trained = std::any_of(level.groups.begin(), level.groups.end(), [](const MemoryGroup& group) { return group.gradient.defined(); });
    if (trained) lowest = std::min<int64_t>(lowest, level.layers.empty() ? 0 : level.layers.front());
  }
  return lowest;
}

}  // namespace membank
