#include "model_worker/model/stack.h"

#include <algorithm>

#include "model_worker/kernels/memory_ffn.h"

namespace membank {
namespace {

// One tensor [sum of rows, columns] whose slices the parts become; no copy when they already lie one after the other.
torch::Tensor Fuse(std::initializer_list<torch::Tensor*> parts) {
  torch::NoGradGuard no_grad;
  const torch::Tensor& first = **parts.begin();
  int64_t rows = 0;
  bool adjacent = true;
  for (const torch::Tensor* part : parts) {
    adjacent = adjacent && part->is_contiguous() && part->storage().is_alias_of(first.storage()) &&
               part->storage_offset() == first.storage_offset() + rows * first.size(1);
    rows += part->size(0);
  }
  torch::Tensor whole;
  if (adjacent) {
    whole = torch::empty({0}, first.options()).set_(first.storage(), first.storage_offset(), {rows, first.size(1)}, {first.size(1), 1});
  } else {
    std::vector<torch::Tensor> tensors;
    for (const torch::Tensor* part : parts) tensors.push_back(*part);
    whole = torch::cat(tensors, 0);
  }
  int64_t at = 0;
  for (torch::Tensor* part : parts) {
    const int64_t height = part->size(0);
    *part = whole.narrow(0, at, height).detach();
    at += height;
  }
  return whole;
}

std::vector<AttentionRows> RowsOf(const RaggedBatch& batch, int64_t layer) {
  std::vector<AttentionRows> rows;
  rows.reserve(batch.segments.size());
  for (const Segment& s : batch.segments) {
    AttentionRows r{s.begin, s.end, {}, {}, 0};
    if (s.cache != nullptr) {
      r.keys = s.cache->keys[layer];
      r.values = s.cache->values[layer];
      r.length = s.cache->length + s.end - s.begin;
    }
    rows.push_back(std::move(r));
  }
  return rows;
}

void CheckBatch(const RaggedBatch& batch, bool backward) {
  const int64_t rows = batch.tokens.size(0);
  int64_t at = 0;
  for (const Segment& s : batch.segments) {
    TORCH_CHECK(s.begin == at && s.end > s.begin, "segment [", s.begin, ", ", s.end, ") does not continue the rows at ", at);
    at = s.end;
    if (s.cache == nullptr) continue;
    TORCH_CHECK(!backward, "a segment with a KV cache cannot be trained on");
    TORCH_CHECK(s.cache->length + s.end - s.begin <= s.cache->keys[0].size(1), "KV cache holds ", s.cache->length, " of ",
                s.cache->keys[0].size(1), " tokens, ", s.end - s.begin, " more do not fit");
  }
  TORCH_CHECK(at == rows, "segments cover ", at, " of ", rows, " rows");
}

std::vector<MemoryFfnGroup> GroupsOf(const MemoryLevel& level, int64_t layer, int64_t hidden) {
  std::vector<MemoryFfnGroup> groups;
  groups.reserve(level.groups.size());
  for (const MemoryGroup& group : level.groups) {
    groups.push_back(MemoryFfnSlice(group.block, group.gradient, layer, level.width, hidden, group.rows));
  }
  return groups;
}

}  // namespace

Stack::Stack(AnchorWeights& weights, bool train_anchor)
    : weights_(weights), train_anchor_(train_anchor), shape_{weights.config.heads, weights.config.kv_heads, weights.config.head_dim} {
  for (LayerWeights& l : weights.layers) {
    const auto projection = [&](const torch::Tensor& w) { return Projection(w, !train_anchor); };
    layers_.push_back({l.input_norm, l.post_attention_norm, projection(Fuse({&l.q, &l.k, &l.v})), projection(l.o),
                       projection(Fuse({&l.gate, &l.up})), projection(l.down)});
  }
}

std::vector<torch::Tensor> Stack::Parameters() const {
  std::vector<torch::Tensor> all{weights_.embedding};
  for (const LayerWeights& l : weights_.layers) {
    all.insert(all.end(), {l.input_norm, l.q, l.k, l.v, l.o, l.post_attention_norm, l.gate, l.up, l.down});
  }
  all.push_back(weights_.final_norm);
  return all;
}

void Stack::EnsureRope(int64_t positions) {
  if (rope_.cos.defined() && rope_.cos.size(0) >= positions) return;
  int64_t size = 1024;
  while (size < positions) size *= 2;
  const torch::Tensor& w = weights_.embedding;
  rope_ = MakeRopeTable(size, shape_.head_dim, weights_.config.rope_theta, w.scalar_type(), w.device());
}

torch::Tensor Stack::Attend(const Layer& layer, int64_t index, const RaggedBatch& batch, const torch::Tensor& normed,
                            const torch::Tensor& positions, LayerTape* tape) {
  torch::Tensor qkv = layer.qkv.Forward(normed);                                       // [N, (h + 2g) * dh]
  Rope(qkv, shape_.heads + shape_.kv_heads, shape_.head_dim, positions, rope_, /*inverse=*/false);
  const std::vector<AttentionRows> rows = RowsOf(batch, index);
  AppendKeysAndValues(qkv, shape_, rows);
  torch::Tensor attention = Attention(qkv, shape_, rows, tape != nullptr ? &tape->log_sums : nullptr);   // [N, h*dh]
  torch::Tensor out = layer.o.Forward(attention);
  if (tape != nullptr) {
    tape->qkv = std::move(qkv);
    tape->attention = std::move(attention);
  }
  return out;
}

torch::Tensor Stack::FeedForward(const Layer& layer, int64_t index, const RaggedBatch& batch, const torch::Tensor& normed,
                                 LayerTape* tape) {
  torch::Tensor gate_up = layer.gate_up.Forward(normed);                               // [N, 2*df]
  torch::Tensor out = layer.down.Forward(SwiGlu(gate_up));
  for (const MemoryLevel& level : batch.memory) {
    std::vector<torch::Tensor>* saved = nullptr;
    if (tape != nullptr) saved = &tape->memory.emplace_back();
    MemoryFfnForward(normed, GroupsOf(level, index, weights_.config.hidden), out, saved);
  }
  if (tape != nullptr) tape->gate_up = std::move(gate_up);
  return out;
}

torch::Tensor Stack::Forward(const RaggedBatch& batch, Tape* tape) {
  CheckBatch(batch, tape != nullptr);
  const double epsilon = weights_.config.rms_epsilon;
  torch::Tensor positions = torch::empty({batch.tokens.size(0)}, torch::kLong);        // [N]
  int64_t last = 0;
  for (const Segment& s : batch.segments) {
    const int64_t first = s.cache != nullptr ? s.cache->length : 0;
    for (int64_t row = s.begin; row < s.end; ++row) positions.data_ptr<int64_t>()[row] = first + row - s.begin;
    last = std::max(last, first + s.end - s.begin);
  }
  EnsureRope(last);
  positions = positions.to(batch.tokens.device());
  torch::Tensor x = weights_.embedding.index_select(0, batch.tokens);                  // [N, d]
  torch::Tensor addend;                                                                // the branch that the next norm adds to x
  for (int64_t i = 0; i < static_cast<int64_t>(layers_.size()); ++i) {
    const Layer& layer = layers_[i];
    LayerTape* layer_tape = tape != nullptr ? &tape->layers.emplace_back() : nullptr;
    Normed in = RmsNorm(x, addend, layer.input_norm, epsilon);
    const torch::Tensor attended = Attend(layer, i, batch, in.y, positions, layer_tape);
    Normed ffn = RmsNorm(in.sum, attended, layer.ffn_norm, epsilon);
    addend = FeedForward(layer, i, batch, ffn.y, layer_tape);
    x = ffn.sum;
    if (layer_tape == nullptr) continue;
    layer_tape->x = std::move(in.sum);
    layer_tape->inv_rms = std::move(in.inv_rms);
    if (train_anchor_) layer_tape->normed = std::move(in.y);
    layer_tape->x_ffn = std::move(ffn.sum);
    layer_tape->inv_rms_ffn = std::move(ffn.inv_rms);
    layer_tape->normed_ffn = std::move(ffn.y);
  }
  for (const Segment& s : batch.segments) {
    if (s.cache != nullptr) s.cache->length += s.end - s.begin;
  }
  Normed out = RmsNorm(x, addend, weights_.final_norm, epsilon);
  if (tape != nullptr) {
    tape->batch = batch;
    tape->positions = std::move(positions);
    tape->rope = rope_;
    tape->x = std::move(out.sum);
    tape->inv_rms = std::move(out.inv_rms);
  }
  return out.y;
}

std::vector<torch::Tensor> Stack::Backward(const Tape& tape, const torch::Tensor& d_hidden) const {
  const ModelConfig& config = weights_.config;
  const auto norm_gradient = [&]() {
    return train_anchor_ ? torch::zeros({config.hidden}, tape.inv_rms.options()) : torch::Tensor();
  };
  std::vector<torch::Tensor> gradients(train_anchor_ ? 2 + 9 * layers_.size() : 0);    // the order of Parameters()
  const auto keep = [&](size_t index, const torch::Tensor& gradient) { gradients[index] = gradient.to(d_hidden.scalar_type()); };

  torch::Tensor d_final = norm_gradient();
  torch::Tensor dx = RmsNormBackward(d_hidden.contiguous(), tape.x, weights_.final_norm, tape.inv_rms, {}, d_final);   // [N, d]
  if (train_anchor_) keep(gradients.size() - 1, d_final);
  for (int64_t i = static_cast<int64_t>(layers_.size()) - 1; i >= 0; --i) {
    const Layer& layer = layers_[i];
    const LayerTape& t = tape.layers[i];
    const size_t first = 1 + 9 * static_cast<size_t>(i);
    const bool lowest = i == 0 && !train_anchor_;   // below the first layer's memory nothing wants a gradient

    // FFN: dx is the gradient of its output and of the residual.
    torch::Tensor d_normed;
    if (!lowest) {
      const SwiGluGradient ffn = SwiGluBackward(t.gate_up, layer.down.InputGradient(dx), train_anchor_);
      d_normed = layer.gate_up.InputGradient(ffn.d_gate_up);                      // [N, d]
      if (train_anchor_) {
        const torch::Tensor d_gate_up = torch::mm(ffn.d_gate_up.t(), t.normed_ffn);    // [2*df, d]
        keep(first + 6, d_gate_up.narrow(0, 0, config.ffn_inner));
        keep(first + 7, d_gate_up.narrow(0, config.ffn_inner, config.ffn_inner));
        keep(first + 8, torch::mm(dx.t(), ffn.h));
      }
    }
    for (size_t l = 0; l < tape.batch.memory.size(); ++l) {
      MemoryFfnBackward(dx, t.normed_ffn, GroupsOf(tape.batch.memory[l], i, config.hidden), t.memory[l], d_normed);
    }
    if (lowest) break;
    torch::Tensor d_weight = norm_gradient();
    dx = RmsNormBackward(d_normed, t.x_ffn, layer.ffn_norm, t.inv_rms_ffn, dx, d_weight);
    if (train_anchor_) {
      keep(first + 5, d_weight);
      keep(first + 4, torch::mm(dx.t(), t.attention));
    }

    // Attention
    const std::vector<AttentionRows> rows = RowsOf(tape.batch, i);
    torch::Tensor d_qkv = AttentionBackward(t.qkv, t.attention, layer.o.InputGradient(dx), shape_, rows, t.log_sums);
    Rope(d_qkv, shape_.heads + shape_.kv_heads, shape_.head_dim, tape.positions, tape.rope, /*inverse=*/true);
    d_normed = layer.qkv.InputGradient(d_qkv);
    if (train_anchor_) {
      const torch::Tensor d_weights = torch::mm(d_qkv.t(), t.normed);                  // [(h + 2g) * dh, d]
      const int64_t q = shape_.heads * shape_.head_dim, kv = shape_.kv_heads * shape_.head_dim;
      keep(first + 1, d_weights.narrow(0, 0, q));
      keep(first + 2, d_weights.narrow(0, q, kv));
      keep(first + 3, d_weights.narrow(0, q + kv, kv));
    }
    d_weight = norm_gradient();
    dx = RmsNormBackward(d_normed, t.x, layer.input_norm, t.inv_rms, dx, d_weight);
    if (train_anchor_) keep(first, d_weight);
  }
  if (train_anchor_) gradients[0] = torch::embedding_dense_backward(dx, tape.batch.tokens, config.vocab, -1, false);
  return gradients;
}

}  // namespace membank
