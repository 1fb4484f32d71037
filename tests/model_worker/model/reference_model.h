// A whole anchor with memories in plain ATen and autograd, fp32: the oracle of the written-out passes of Stack for every memory type.
#pragma once

#include <torch/torch.h>

#include <algorithm>
#include <map>
#include <string>
#include <vector>

#include "common/bank/block_layout.h"
#include "model_worker/kernels/reference.h"
#include "model_worker/model/bank_levels.h"
#include "model_worker/model/transformer.h"

namespace membank::reference {

class Model {
 public:
  // `blocks`: those of batch.memory, level by level and group by group, in their place.
  Model(const AnchorWeights& weights, const RaggedBatch& batch, const std::vector<torch::Tensor>& blocks)
      : weights_(weights), c_(weights.config), batch_(batch), blocks_(blocks) {}

  torch::Tensor Logits() {
    std::vector<int64_t> positions;
    for (const Segment& s : batch_.segments)
      for (int64_t row = s.begin; row < s.end; ++row) positions.push_back(row - s.begin);
    positions_ = torch::tensor(positions, torch::kLong);
    torch::Tensor x = weights_.embedding.index_select(0, batch_.tokens) * c_.embedding_scale;
    for (layer_ = 0; layer_ < c_.layers; ++layer_) {
      const LayerWeights& w = weights_.layers[layer_];
      torch::Tensor attended = Attend(w, Norm(c_.norm, x, w.input_norm, w.input_norm_bias));
      if (c_.branch_norms) attended = Norm(c_.norm, attended, w.attention_out_norm, {});
      const torch::Tensor middle = c_.parallel_branches ? x : x + attended;
      torch::Tensor fed = FeedForward(w, Norm(c_.norm, middle, w.ffn_norm, w.ffn_norm_bias));
      if (c_.branch_norms) fed = Norm(c_.norm, fed, w.ffn_out_norm, {});
      x = c_.parallel_branches ? x + attended + fed : middle + fed;
    }
    return torch::matmul(Norm(c_.norm, x, weights_.final_norm, weights_.final_norm_bias), (c_.tied_head ? weights_.embedding : weights_.head).t());
  }

 private:
  using Matrices = std::map<std::string, torch::Tensor>;   // of one unit range in this layer, each [r, columns]

  static torch::Tensor Linear(const torch::Tensor& x, const torch::Tensor& w, const torch::Tensor& bias) {
    const torch::Tensor y = torch::matmul(x, w.t());
    return bias.defined() ? y + bias : y;
  }
  static torch::Tensor Lora(const torch::Tensor& x, const Matrices& m, const std::string& of) {
    return 2 * torch::matmul(torch::matmul(x, m.at("a_" + of).t()), m.at("b_" + of));
  }

  // y with add(x of the rows, matrices of the block) on the rows of every block of `type` in this layer.
  template <typename Add>
  torch::Tensor WithMemory(MemoryType type, const torch::Tensor& x, torch::Tensor y, Add add) const {
    ForEachBlock(type, [&](const MemoryLevel&, const MemoryGroup& group, const Matrices& matrices) {
      for (const auto& [begin, end] : group.rows) {
        const torch::Tensor added = add(x.narrow(0, begin, end - begin), matrices);
        y = y + torch::constant_pad_nd(added, {0, 0, begin, y.size(0) - end});
      }
    });
    return y;
  }

  template <typename Visit>
  void ForEachBlock(MemoryType type, Visit visit) const {
    size_t number = 0;
    for (const MemoryLevel& level : batch_.memory) {
      const auto place = level.layers.empty() ? layer_ : std::find(level.layers.begin(), level.layers.end(), layer_) - level.layers.begin();
      const bool here = level.type == type && (level.layers.empty() || place < static_cast<int64_t>(level.layers.size()));
      for (const MemoryGroup& group : level.groups) {
        const torch::Tensor& block = blocks_[number++];
        if (!here) continue;
        const BlockMatrices layout = MatricesOf(type, AnchorShapeOf(c_));
        int64_t columns = 0;
        for (const BlockMatrix& matrix : layout) columns += static_cast<int64_t>(matrix.columns);
        int64_t at = place * columns * level.width;
        Matrices matrices;
        for (const BlockMatrix& matrix : layout) {
          const int64_t width = static_cast<int64_t>(matrix.columns);
          matrices[std::string(matrix.name)] = block.narrow(0, at, level.width * width).view({level.width, width});
          at += level.width * width;
        }
        visit(level, group, matrices);
      }
    }
  }

  // Row by row and bank by bank: one softmax over the keys of all the row's blocks, concatenated.
  torch::Tensor KvMemory(const torch::Tensor& query) const {
    std::vector<torch::Tensor> outs;
    for (int64_t row = 0; row < query.size(0); ++row) {
      std::map<size_t, std::vector<torch::Tensor>> keys, values;   // by bank
      ForEachBlock(MemoryType::kKv, [&](const MemoryLevel& level, const MemoryGroup& group, const Matrices& m) {
        for (const auto& [begin, end] : group.rows) {
          if (row < begin || row >= end) continue;
          keys[level.bank].push_back(m.at("keys").view({-1, c_.heads, c_.head_dim}));
          values[level.bank].push_back(m.at("values").view({-1, c_.heads, c_.head_dim}));
        }
      });
      torch::Tensor out = torch::zeros({query.size(1)});
      for (const auto& [bank, list] : keys) {
        const torch::Tensor k = torch::cat(list, 0).transpose(0, 1), v = torch::cat(values[bank], 0).transpose(0, 1);   // [h, units, dh]
        const torch::Tensor scores = torch::matmul(k, query[row].view({c_.heads, c_.head_dim, 1})).transpose(1, 2) * Shape().Scale();
        out = out + torch::matmul(torch::softmax(scores, 2), v).reshape({query.size(1)});
      }
      outs.push_back(out);
    }
    return torch::stack(outs, 0);
  }

  Heads Shape() const { return {c_.heads, c_.kv_heads, c_.head_dim, c_.attention_scale, c_.Slides(layer_) ? c_.window : 0}; }

  torch::Tensor Attend(const LayerWeights& w, const torch::Tensor& x) {
    torch::Tensor q = Linear(x, w.q, w.q_bias), k = Linear(x, w.k, w.k_bias), v = Linear(x, w.v, w.v_bias);
    const auto lora = [&](MemoryType type, torch::Tensor y, const char* of) {
      return WithMemory(type, x, std::move(y), [&](const torch::Tensor& in, const Matrices& m) { return Lora(in, m, of); });
    };
    q = lora(MemoryType::kLoraQk, q, "q");
    k = lora(MemoryType::kLoraQk, k, "k");
    v = lora(MemoryType::kLoraVo, v, "v");
    const auto normed = [&](const torch::Tensor& y, const torch::Tensor& weight) {
      return Norm(c_.norm, y.reshape({-1, weight.size(0)}), weight, {}).view_as(y);
    };
    if (c_.qk_norm != QkNorm::kNone) {
      q = normed(q, w.q_norm);
      k = normed(k, w.k_norm);
    }
    const RopeForm& form = c_.Slides(layer_) ? c_.local_rope : c_.rope;
    const RopeTable table = MakeRopeTable(x.size(0), form.InverseFrequencies(c_.rotary_dim), torch::kFloat, torch::kCPU);
    const torch::Tensor qkv = reference::Rope(torch::cat({q, k, v}, 1), c_.heads + c_.kv_heads, c_.head_dim, positions_, table);
    std::vector<AttentionRows> rows;
    for (const Segment& s : batch_.segments) rows.push_back({s.begin, s.end, {}, {}, 0});
    const torch::Tensor attention = reference::Attention(qkv, Shape(), rows) + KvMemory(q);
    return WithMemory(MemoryType::kLoraVo, attention, Linear(attention, w.o, w.o_bias),
                      [](const torch::Tensor& in, const Matrices& m) { return Lora(in, m, "o"); });
  }

  torch::Tensor FeedForward(const LayerWeights& w, const torch::Tensor& x) {
    torch::Tensor in = Linear(x, w.up, w.up_bias);
    if (c_.ffn.gated) {
      const auto lora = [&](torch::Tensor y, const char* of) {
        return WithMemory(MemoryType::kLoraFfn, x, std::move(y), [&](const torch::Tensor& rows, const Matrices& m) { return Lora(rows, m, of); });
      };
      in = torch::cat({lora(Linear(x, w.gate, w.gate_bias), "gate"), lora(in, "up")}, 1);
    }
    const torch::Tensor h = reference::Activate(c_.ffn, in);
    const torch::Tensor out = WithMemory(MemoryType::kLoraFfn, h, Linear(h, w.down, w.down_bias),
                                         [](const torch::Tensor& rows, const Matrices& m) { return Lora(rows, m, "down"); });
    return WithMemory(MemoryType::kFfn, x, out, [&](const torch::Tensor& rows, const Matrices& m) {
      return MemoryFfn(rows, m.at("gate"), m.at("up"), m.at("down"), c_.MemoryActivation());
    });
  }

  const AnchorWeights& weights_;
  const ModelConfig& c_;
  const RaggedBatch& batch_;
  const std::vector<torch::Tensor>& blocks_;
  torch::Tensor positions_;
  int64_t layer_ = 0;
};

}  // namespace membank::reference
