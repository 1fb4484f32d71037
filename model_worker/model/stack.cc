#include "model_worker/model/stack.h"

#include <algorithm>
#include <utility>

#include "model_worker/model/architecture.h"

namespace membank {
namespace {

// One tensor [sum of rows, ...] whose slices the parts become; no copy when they already lie one after the other. One part is itself.
torch::Tensor Fuse(std::initializer_list<torch::Tensor*> parts) {
  torch::NoGradGuard no_grad;
  const torch::Tensor& first = **parts.begin();
  if (!first.defined() || parts.size() == 1) return first;
  int64_t rows = 0;
  const int64_t row = first.numel() / first.size(0);
  bool adjacent = true;
  for (const torch::Tensor* part : parts) {
    adjacent = adjacent && part->is_contiguous() && part->storage().is_alias_of(first.storage()) &&
               part->storage_offset() == first.storage_offset() + rows * row;
    rows += part->size(0);
  }
  torch::Tensor whole;
  if (adjacent) {
    std::vector<int64_t> shape = first.sizes().vec();
    shape[0] = rows;
    whole = torch::empty({0}, first.options()).set_(first.storage(), first.storage_offset(), shape, first.strides());
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

// The parts' gradients: the rows of `whole` in their order.
void Split(const torch::Tensor& whole, torch::Dtype dtype, LayerWeights* gradients, std::initializer_list<torch::Tensor LayerWeights::*> members,
           const LayerWeights& like) {
  int64_t at = 0;
  for (torch::Tensor LayerWeights::*member : members) {
    const int64_t height = (like.*member).size(0);
    gradients->*member = whole.narrow(0, at, height).to(dtype);
    at += height;
  }
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

}  // namespace

torch::Tensor Stack::Linear::Forward(const torch::Tensor& x) const {
  torch::Tensor y = w.Forward(x);
  return bias.defined() ? y.add_(bias) : y;
}

Stack::Stack(AnchorWeights& weights, bool train_anchor) : weights_(weights), config_(weights.config), train_anchor_(train_anchor) {
  for (LayerWeights& l : weights.layers) {
    const auto linear = [&](const torch::Tensor& w, const torch::Tensor& bias) { return Linear{Projection(w, !train_anchor), bias}; };
    Linear in = config_.ffn.gated ? linear(Fuse({&l.gate, &l.up}), Fuse({&l.gate_bias, &l.up_bias})) : linear(l.up, l.up_bias);
    layers_.push_back({&l, linear(Fuse({&l.q, &l.k, &l.v}), Fuse({&l.q_bias, &l.k_bias, &l.v_bias})), linear(l.o, l.o_bias), std::move(in),
                       linear(l.down, l.down_bias)});
  }
}

std::vector<torch::Tensor> Stack::Flatten(const torch::Tensor& embedding, const std::vector<LayerWeights>& layers, const torch::Tensor& final_norm,
                                          const torch::Tensor& final_norm_bias) const {
  std::vector<torch::Tensor> all{embedding};
  const std::vector<LayerTensor> tensors = LayerTensors(config_);
  for (const LayerWeights& l : layers) {
    for (const LayerTensor& tensor : tensors) all.push_back(l.*tensor.member);
  }
  all.push_back(final_norm);
  if (config_.norm_bias) all.push_back(final_norm_bias);
  return all;
}

std::vector<torch::Tensor> Stack::Parameters() const {
  return Flatten(weights_.embedding, weights_.layers, weights_.final_norm, weights_.final_norm_bias);
}

Heads Stack::HeadsOf(int64_t layer) const {
  return {config_.heads, config_.kv_heads, config_.head_dim, config_.attention_scale, config_.Slides(layer) ? config_.window : 0};
}

void Stack::EnsureRope(int64_t positions) {
  if (rope_.cos.defined() && rope_.cos.size(0) >= positions) return;
  int64_t size = 1024;
  while (size < positions) size *= 2;
  const torch::Tensor& w = weights_.embedding;
  const auto table = [&](const RopeForm& form) {
    return MakeRopeTable(size, form.InverseFrequencies(config_.rotary_dim), w.scalar_type(), w.device());
  };
  rope_ = table(config_.rope);
  if (!config_.sliding.empty()) local_rope_ = table(config_.local_rope);
}

// --- Forward ---------------------------------------------------------------------------------------------------------------------------------

void Stack::NormHeads(const Layer& layer, torch::Tensor& qkv, LayerTape* tape) const {
  const auto norm = [&](const torch::Tensor& weight, int64_t column, int64_t width, Normed LayerTape::*saved) {
    torch::Tensor part = qkv.narrow(1, column, width);
    Normed normed = Norm(config_.norm, part.contiguous().view({-1, weight.size(0)}), {}, weight, {});
    part.copy_(normed.y.view({qkv.size(0), width}));
    normed.y = torch::Tensor();
    if (tape != nullptr) tape->*saved = std::move(normed);
  };
  const int64_t q = config_.heads * config_.head_dim, kv = config_.kv_heads * config_.head_dim;
  norm(layer.weights->q_norm, 0, q, &LayerTape::q_norm);
  norm(layer.weights->k_norm, q, kv, &LayerTape::k_norm);
}

torch::Tensor Stack::Attend(int64_t index, const RaggedBatch& batch, const torch::Tensor& normed, const torch::Tensor& positions, LayerTape* tape) {
  const Layer& layer = layers_[index];
  const LayerMemory memory(batch.memory, config_, index);
  LayerMemoryTape* const memory_tape = tape != nullptr ? &tape->memory : nullptr;
  torch::Tensor qkv = layer.qkv.Forward(normed);                                       // [N, (h + 2g) * dh]
  memory.AddToQkv(normed, qkv, memory_tape);
  if (config_.qk_norm != QkNorm::kNone) NormHeads(layer, qkv, tape);
  const torch::Tensor query = memory.Query(qkv);
  Rope(qkv, config_.heads + config_.kv_heads, config_.head_dim, positions, config_.Slides(index) ? local_rope_ : rope_, /*inverse=*/false);
  const Heads shape = HeadsOf(index);
  const std::vector<AttentionRows> rows = RowsOf(batch, index);
  AppendKeysAndValues(qkv, shape, rows);
  torch::Tensor attention = Attention(qkv, shape, rows, tape != nullptr ? &tape->log_sums : nullptr);   // [N, h*dh]
  torch::Tensor attended = memory.AddToAttention(query, attention, memory_tape);
  torch::Tensor out = layer.o.Forward(attended);
  memory.AddToAttentionOut(attended, out, memory_tape);
  if (tape != nullptr) {
    tape->qkv = std::move(qkv);
    tape->attention = std::move(attention);
    tape->attended = std::move(attended);
  }
  return out;
}

torch::Tensor Stack::FeedForward(int64_t index, const RaggedBatch& batch, const torch::Tensor& normed, LayerTape* tape) {
  const Layer& layer = layers_[index];
  const LayerMemory memory(batch.memory, config_, index);
  LayerMemoryTape* const memory_tape = tape != nullptr ? &tape->memory : nullptr;
  torch::Tensor gate_up = layer.in.Forward(normed);                                    // [N, 2*df]
  memory.AddToFfnIn(normed, gate_up, memory_tape);
  const torch::Tensor h = Activate(config_.ffn, gate_up);                              // [N, df]
  torch::Tensor out = layer.down.Forward(h);
  memory.AddToFfnOut(normed, h, out, memory_tape);
  if (tape != nullptr) tape->gate_up = std::move(gate_up);
  return out;
}

torch::Tensor Stack::Forward(const RaggedBatch& batch, Tape* tape) {
  CheckBatch(batch, tape != nullptr);
  CheckMemory(batch.memory, config_);
  if (tape != nullptr) {
    tape->lowest = train_anchor_ ? 0 : LowestTrainedLayer(batch.memory, config_.layers);
    tape->layers.resize(layers_.size());
  }
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
  if (config_.embedding_scale != 1) x.mul_(torch::scalar_tensor(config_.embedding_scale, x.options()));   // rounded to the weights' type
  torch::Tensor addend;                                                                // the branch that the next norm adds to x
  for (int64_t i = 0; i < static_cast<int64_t>(layers_.size()); ++i) {
    const LayerWeights& w = *layers_[i].weights;
    LayerTape* layer_tape = tape != nullptr && i >= tape->lowest ? &tape->layers[i] : nullptr;
    Normed in = Norm(config_.norm, x, addend, w.input_norm, w.input_norm_bias), attention_out, ffn_out;
    torch::Tensor attended = Attend(i, batch, in.y, positions, layer_tape);
    if (config_.branch_norms) {
      attention_out = Norm(config_.norm, attended, {}, w.attention_out_norm, {});
      attended = std::exchange(attention_out.y, {});
    }
    Normed ffn = Norm(config_.norm, in.sum, config_.parallel_branches ? torch::Tensor() : attended, w.ffn_norm, w.ffn_norm_bias);
    addend = FeedForward(i, batch, ffn.y, layer_tape);
    if (config_.parallel_branches) addend.add_(attended);
    if (config_.branch_norms) {
      ffn_out = Norm(config_.norm, addend, {}, w.ffn_out_norm, {});
      addend = std::exchange(ffn_out.y, {});
    }
    x = ffn.sum;
    if (layer_tape == nullptr) continue;
    if (!train_anchor_ && !LayerMemory(batch.memory, config_, i).ReadsAttentionInput()) in.y = torch::Tensor();
    layer_tape->in = std::move(in);
    layer_tape->ffn = std::move(ffn);
    layer_tape->attention_out = std::move(attention_out);
    layer_tape->ffn_out = std::move(ffn_out);
  }
  for (const Segment& s : batch.segments) {
    if (s.cache != nullptr) s.cache->length += s.end - s.begin;
  }
  Normed out = Norm(config_.norm, x, addend, weights_.final_norm, weights_.final_norm_bias);
  const torch::Tensor hidden = std::exchange(out.y, {});
  if (tape != nullptr) {
    tape->batch = batch;
    tape->positions = std::move(positions);
    tape->rope = rope_;
    tape->local_rope = local_rope_;
    tape->out = std::move(out);
  }
  return hidden;
}

// --- Backward --------------------------------------------------------------------------------------------------------------------------------

torch::Tensor Stack::BranchNormBackward(const torch::Tensor& dy, const Normed& normed, const torch::Tensor& weight, const torch::Tensor& residual,
                                        torch::Tensor LayerWeights::*member, torch::Tensor LayerWeights::*bias, LayerWeights* gradients) const {
  torch::Tensor d_weight, d_bias;
  if (gradients != nullptr) {
    d_weight = torch::zeros({weight.size(0)}, normed.inv_rms.options());
    if (bias != nullptr && config_.norm_bias) d_bias = torch::zeros_like(d_weight);
  }
  torch::Tensor dx = NormBackward(config_.norm, dy, normed, weight, residual, d_weight, d_bias);
  if (d_weight.defined()) gradients->*member = d_weight.to(dy.scalar_type());
  if (d_bias.defined()) gradients->*bias = d_bias.to(dy.scalar_type());
  return dx;
}

torch::Tensor Stack::FeedForwardBackward(int64_t index, const Tape& tape, const torch::Tensor& d_out, bool wanted, LayerWeights* gradients) const {
  const Layer& layer = layers_[index];
  const LayerTape& t = tape.layers[index];
  const LayerMemory memory(tape.batch.memory, config_, index);
  ActivationGradient ffn;
  torch::Tensor d_normed;                                                              // [N, d]
  if (wanted || memory.InsideFfn()) {
    torch::Tensor dh = layer.down.w.InputGradient(d_out);                              // [N, df]
    memory.FfnOutBackward(d_out, t.gate_up, t.memory, dh);
    ffn = ActivateBackward(config_.ffn, t.gate_up, dh, gradients != nullptr);
    if (wanted) d_normed = layer.in.w.InputGradient(ffn.d_in);
    if (gradients != nullptr) {
      const torch::Dtype dtype = d_out.scalar_type();
      const torch::Tensor d_in = torch::mm(ffn.d_in.t(), t.ffn.y);                     // [2*df, d]
      if (config_.ffn.gated) {
        Split(d_in, dtype, gradients, {&LayerWeights::gate, &LayerWeights::up}, *layer.weights);
      } else {
        gradients->up = d_in;
      }
      gradients->down = torch::mm(d_out.t(), ffn.h);
      if (config_.ffn_bias) {
        if (config_.ffn.gated) {
          Split(ffn.d_in.sum(0), dtype, gradients, {&LayerWeights::gate_bias, &LayerWeights::up_bias}, *layer.weights);
        } else {
          gradients->up_bias = ffn.d_in.sum(0);
        }
        gradients->down_bias = d_out.sum(0);
      }
    }
  }
  memory.FfnInBackward(d_out, ffn.d_in, t.ffn.y, t.memory, d_normed);
  return d_normed;
}

void Stack::NormHeadsBackward(const Layer& layer, const LayerTape& tape, torch::Tensor& d_qkv, LayerWeights* gradients) const {
  const auto backward = [&](torch::Tensor LayerWeights::*member, const Normed& normed, int64_t column, int64_t width) {
    torch::Tensor part = d_qkv.narrow(1, column, width);
    const torch::Tensor& weight = layer.weights->*member;
    const torch::Tensor d_part = BranchNormBackward(part.contiguous().view({-1, weight.size(0)}), normed, weight, {}, member, nullptr, gradients);
    part.copy_(d_part.view({d_qkv.size(0), width}));
  };
  const int64_t q = config_.heads * config_.head_dim, kv = config_.kv_heads * config_.head_dim;
  backward(&LayerWeights::q_norm, tape.q_norm, 0, q);
  backward(&LayerWeights::k_norm, tape.k_norm, q, kv);
}

torch::Tensor Stack::AttendBackward(int64_t index, const Tape& tape, const torch::Tensor& d_out, bool wanted, LayerWeights* gradients) const {
  const Layer& layer = layers_[index];
  const LayerTape& t = tape.layers[index];
  const LayerMemory memory(tape.batch.memory, config_, index);
  torch::Tensor d_attended = layer.o.w.InputGradient(d_out);                           // [N, h*dh]
  memory.AttentionOutBackward(d_out, t.attended, t.memory, d_attended);
  torch::Tensor d_qkv = AttentionBackward(t.qkv, t.attention, d_attended, HeadsOf(index), RowsOf(tape.batch, index), t.log_sums);
  Rope(d_qkv, config_.heads + config_.kv_heads, config_.head_dim, tape.positions, config_.Slides(index) ? tape.local_rope : tape.rope,
       /*inverse=*/true);
  memory.AttentionBackward(d_attended, t.memory, d_qkv);
  if (config_.qk_norm != QkNorm::kNone) NormHeadsBackward(layer, t, d_qkv, gradients);
  if (gradients != nullptr) {
    const torch::Dtype dtype = d_out.scalar_type();
    gradients->o = torch::mm(d_out.t(), t.attended);
    if (config_.o_bias) gradients->o_bias = d_out.sum(0);
    Split(torch::mm(d_qkv.t(), t.in.y), dtype, gradients, {&LayerWeights::q, &LayerWeights::k, &LayerWeights::v}, *layer.weights);
    if (config_.qkv_bias)
      Split(d_qkv.sum(0), dtype, gradients, {&LayerWeights::q_bias, &LayerWeights::k_bias, &LayerWeights::v_bias}, *layer.weights);
  }
  torch::Tensor d_normed = wanted ? layer.qkv.w.InputGradient(d_qkv) : torch::Tensor();
  memory.QkvBackward(d_qkv, t.in.y, t.memory, d_normed);
  return d_normed;
}

std::vector<torch::Tensor> Stack::Backward(const Tape& tape, const torch::Tensor& d_hidden) const {
  std::vector<LayerWeights> gradients(train_anchor_ ? layers_.size() : 0);
  LayerWeights outer;                                                                  // the final norm's, in the place of an input norm's
  torch::Tensor dx = BranchNormBackward(d_hidden.contiguous(), tape.out, weights_.final_norm, {}, &LayerWeights::input_norm,
                                        &LayerWeights::input_norm_bias, train_anchor_ ? &outer : nullptr);   // [N, d]
  for (int64_t i = static_cast<int64_t>(layers_.size()) - 1; i >= 0; --i) {
    const LayerWeights& w = *layers_[i].weights;
    const LayerTape& t = tape.layers[i];
    LayerWeights* const kept = train_anchor_ ? &gradients[i] : nullptr;
    const bool lower = train_anchor_ || i > tape.lowest;   // something below this layer wants a gradient
    const bool attention = lower || LayerMemory(tape.batch.memory, config_, i).InAttention();
    const auto through = [&](torch::Tensor LayerWeights::*member, const Normed& normed, const torch::Tensor& dy) {   // a branch's own norm
      return config_.branch_norms ? BranchNormBackward(dy, normed, w.*member, {}, member, nullptr, kept) : dy;
    };
    // dx is the gradient of the layer's output: of each branch and of the residual.
    const torch::Tensor d_ffn = FeedForwardBackward(i, tape, through(&LayerWeights::ffn_out_norm, t.ffn_out, dx), attention, kept);
    if (!attention) break;
    torch::Tensor d_middle = BranchNormBackward(d_ffn, t.ffn, w.ffn_norm, dx, &LayerWeights::ffn_norm, &LayerWeights::ffn_norm_bias, kept);
    const torch::Tensor d_branch = config_.parallel_branches ? dx : d_middle;
    const torch::Tensor d_attention = AttendBackward(i, tape, through(&LayerWeights::attention_out_norm, t.attention_out, d_branch), lower, kept);
    if (!lower) break;
    dx = BranchNormBackward(d_attention, t.in, w.input_norm, d_middle, &LayerWeights::input_norm, &LayerWeights::input_norm_bias, kept);
  }
  if (!train_anchor_) return {};
  if (config_.embedding_scale != 1) dx = dx * torch::scalar_tensor(config_.embedding_scale, dx.options());
  return Flatten(torch::embedding_dense_backward(dx, tape.batch.tokens, config_.vocab, -1, false), gradients, outer.input_norm, outer.input_norm_bias);
}

}  // namespace membank
