#include "model_worker/kernels/ops.h"

#include <cmath>
#include <cstring>

#include "model_worker/kernels/cpu_tensors.h"
#include "model_worker/kernels/reference.h"

namespace membank {
namespace {

// The gradient of reference operation `f` at `inputs`, for devices without our kernels.
template <typename F>
torch::autograd::variable_list ReferenceGradient(torch::autograd::variable_list inputs, const torch::Tensor& d_out, F f) {
  torch::AutoGradMode on(true);
  for (torch::Tensor& input : inputs) input = input.detach().requires_grad_();
  return torch::autograd::grad({f(inputs)}, inputs, {d_out});
}

float* FloatData(const torch::Tensor& x) { return x.defined() ? x.data_ptr<float>() : nullptr; }

NormShape ShapeOf(const NormForm& form, const torch::Tensor& x) {
  return {x.size(0), x.size(1), static_cast<float>(form.epsilon), static_cast<float>(form.offset), form.center};
}

AttentionShape KernelShape(const Heads& shape) {
  return {shape.heads, shape.kv_heads, shape.head_dim, static_cast<float>(shape.Scale()), shape.window};
}

const uint8_t* At(const torch::Tensor& x, int64_t row, int64_t column) {
  return static_cast<const uint8_t*>(x.data_ptr()) + (row * x.stride(0) + column) * x.element_size();
}

AttentionSegment SegmentOf(const torch::Tensor& qkv, const torch::Tensor& out, const Heads& shape, const AttentionRows& s) {
  const int64_t h = shape.heads, g = shape.kv_heads, dh = shape.head_dim;
  AttentionSegment segment;
  segment.q = At(qkv, s.begin, 0);
  segment.out = const_cast<uint8_t*>(At(out, s.begin, 0));
  segment.queries = s.end - s.begin;
  segment.q_stride = qkv.stride(0);
  segment.out_stride = out.stride(0);
  if (s.keys.defined()) {
    segment.k = s.keys.data_ptr();
    segment.v = s.values.data_ptr();
    segment.keys = s.length;
    segment.k_stride = s.keys.stride(1);
    segment.kv_head_stride = s.keys.stride(0);
  } else {
    segment.k = At(qkv, s.begin, h * dh);
    segment.v = At(qkv, s.begin, (h + g) * dh);
    segment.keys = segment.queries;
    segment.k_stride = qkv.stride(0);
    segment.kv_head_stride = dh;
  }
  return segment;
}

}  // namespace

Normed Norm(const NormForm& form, const torch::Tensor& x, const torch::Tensor& addend, const torch::Tensor& weight, const torch::Tensor& bias) {
  if (!OnCpuKernels(x)) {
    Normed result;
    result.sum = addend.defined() ? x + addend : x;
    result.y = reference::Norm(form, result.sum, weight, bias);
    torch::Tensor wide = result.sum.to(torch::kFloat);
    if (form.center) {
      result.mean = wide.mean(-1);
      wide = wide - result.mean.unsqueeze(1);
    }
    result.inv_rms = torch::rsqrt(wide.pow(2).mean(-1) + form.epsilon);
    return result;
  }
  Normed result;
  result.sum = addend.defined() ? torch::empty_like(x) : x;
  result.y = torch::empty_like(x);
  result.inv_rms = torch::empty({x.size(0)}, x.options().dtype(torch::kFloat));
  if (form.center) result.mean = torch::empty_like(result.inv_rms);
  KernelsFor(x).norm(ShapeOf(form, x), Data(x), Data(addend), Data(result.sum), Data(weight), Data(bias), Data(result.y), FloatData(result.mean),
                     FloatData(result.inv_rms));
  return result;
}

torch::Tensor NormBackward(const NormForm& form, const torch::Tensor& dy, const Normed& normed, const torch::Tensor& weight,
                           const torch::Tensor& residual, torch::Tensor d_weight, torch::Tensor d_bias) {
  const torch::Tensor& x = normed.sum;
  if (!OnCpuKernels(x)) {
    const torch::Tensor gradient = dy.to(torch::kFloat), weighted = gradient * (weight.to(torch::kFloat) + form.offset);
    torch::Tensor scaled = x.to(torch::kFloat);
    if (form.center) scaled = scaled - normed.mean.unsqueeze(1);
    scaled = scaled * normed.inv_rms.unsqueeze(1);
    if (d_weight.defined()) d_weight.add_((gradient * scaled).sum(0));
    if (d_bias.defined()) d_bias.add_(gradient.sum(0));
    torch::Tensor dx = weighted - scaled * (weighted * scaled).mean(-1, true);
    if (form.center) dx = dx - weighted.mean(-1, true);
    dx = dx * normed.inv_rms.unsqueeze(1);
    if (residual.defined()) dx = dx + residual;
    return dx.to(x.scalar_type());
  }
  torch::Tensor dx = torch::empty_like(x);
  KernelsFor(x).norm_backward(ShapeOf(form, x), Data(dy), Data(x), Data(weight), FloatData(normed.mean), FloatData(normed.inv_rms), Data(residual),
                              Data(dx), FloatData(d_weight), FloatData(d_bias));
  return dx;
}

RopeTable MakeRopeTable(int64_t positions, const torch::Tensor& inverse_frequencies, torch::Dtype dtype, torch::Device device) {
  const torch::Tensor angle = torch::outer(torch::arange(positions, torch::TensorOptions(torch::kFloat)), inverse_frequencies);   // [P, m]
  const auto rounded = [&](const torch::Tensor& x) { return x.to(dtype).to(torch::kFloat).contiguous().to(device); };
  return {rounded(angle.cos()), rounded(angle.sin())};
}

void Rope(torch::Tensor& x, int64_t heads, int64_t head_dim, const torch::Tensor& positions, const RopeTable& table, bool inverse) {
  if (!OnCpuKernels(x)) {
    const RopeTable turn{table.cos, inverse ? -table.sin : table.sin};
    x.copy_(reference::Rope(x, heads, head_dim, positions, turn));
    return;
  }
  KernelsFor(x).rope(x.size(0), heads, head_dim, 2 * table.cos.size(1), x.stride(0), Data(x), positions.data_ptr<int64_t>(), FloatData(table.cos),
                     FloatData(table.sin), inverse);
}

torch::Tensor Activate(const FfnForm& form, const torch::Tensor& in) {
  if (!OnCpuKernels(in)) return reference::Activate(form, in);
  torch::Tensor h = torch::empty({in.size(0), in.size(1) / (form.gated ? 2 : 1)}, in.options());
  KernelsFor(in).activate(form.activation, form.gated, h.size(0), h.size(1), Data(in), Data(h));
  return h;
}

ActivationGradient ActivateBackward(const FfnForm& form, const torch::Tensor& in, const torch::Tensor& dh, bool want_h) {
  if (!OnCpuKernels(in)) {
    const auto gradient = ReferenceGradient({in}, dh, [&](const auto& inputs) { return reference::Activate(form, inputs[0]); });
    return {gradient[0], want_h ? reference::Activate(form, in) : torch::Tensor()};
  }
  ActivationGradient result{torch::empty_like(in), want_h ? torch::empty_like(dh) : torch::Tensor()};
  KernelsFor(in).activate_backward(form.activation, form.gated, dh.size(0), dh.size(1), Data(in), Data(dh), Data(result.d_in), Data(result.h));
  return result;
}

double Heads::Scale() const { return scale > 0 ? scale : 1.0 / std::sqrt(static_cast<double>(head_dim)); }

void AppendKeysAndValues(const torch::Tensor& qkv, const Heads& shape, const std::vector<AttentionRows>& segments) {
  const int64_t h = shape.heads, g = shape.kv_heads, dh = shape.head_dim;
  const size_t bytes = static_cast<size_t>(dh) * qkv.element_size();
  for (const AttentionRows& s : segments) {
    if (!s.keys.defined()) continue;
    const int64_t rows = s.end - s.begin, first = s.length - rows;
    if (!qkv.is_cpu()) {
      const auto part = [&](int64_t column) {
        return qkv.narrow(0, s.begin, rows).narrow(1, column, g * dh).reshape({rows, g, dh}).transpose(0, 1);
      };
      s.keys.narrow(1, first, rows).copy_(part(h * dh));
      s.values.narrow(1, first, rows).copy_(part((h + g) * dh));
      continue;
    }
    for (int64_t head = 0; head < g; ++head) {   // a memcpy per row: two ATen copies per layer and sequence cost more than a decode's attention
      uint8_t* keys = static_cast<uint8_t*>(s.keys.data_ptr()) + (head * s.keys.size(1) + first) * bytes;
      uint8_t* values = static_cast<uint8_t*>(s.values.data_ptr()) + (head * s.values.size(1) + first) * bytes;
      for (int64_t row = 0; row < rows; ++row) {
        std::memcpy(keys + row * bytes, At(qkv, s.begin + row, (h + head) * dh), bytes);
        std::memcpy(values + row * bytes, At(qkv, s.begin + row, (h + g + head) * dh), bytes);
      }
    }
  }
}

torch::Tensor Attention(const torch::Tensor& qkv, const Heads& shape, const std::vector<AttentionRows>& segments,
                        std::vector<torch::Tensor>* log_sums) {
  if (!OnCpuKernels(qkv)) {
    if (log_sums != nullptr) log_sums->assign(segments.size(), torch::Tensor());
    return reference::Attention(qkv, shape, segments);
  }
  torch::Tensor out = torch::empty({qkv.size(0), shape.heads * shape.head_dim}, qkv.options());
  std::vector<AttentionSegment> raw;
  raw.reserve(segments.size());
  for (const AttentionRows& s : segments) {
    raw.push_back(SegmentOf(qkv, out, shape, s));
    if (log_sums == nullptr) continue;
    log_sums->push_back(torch::empty({shape.heads, s.end - s.begin}, qkv.options().dtype(torch::kFloat)));
    raw.back().log_sum = log_sums->back().data_ptr<float>();
  }
  KernelsFor(qkv).attention(KernelShape(shape), raw);
  return out;
}

torch::Tensor AttentionBackward(const torch::Tensor& qkv, const torch::Tensor& out, const torch::Tensor& d_out, const Heads& shape,
                                const std::vector<AttentionRows>& segments, const std::vector<torch::Tensor>& log_sums) {
  if (!OnCpuKernels(qkv)) {
    return ReferenceGradient({qkv}, d_out, [&](const auto& in) { return reference::Attention(in[0], shape, segments); })[0];
  }
  const int64_t h = shape.heads, g = shape.kv_heads, dh = shape.head_dim;
  torch::Tensor gradient = torch::empty_like(qkv);
  std::vector<AttentionSegment> raw;
  raw.reserve(segments.size());
  for (size_t i = 0; i < segments.size(); ++i) {
    const int64_t begin = segments[i].begin;
    raw.push_back(SegmentOf(qkv, out, shape, segments[i]));
    raw.back().log_sum = log_sums[i].data_ptr<float>();
    raw.back().d_out = At(d_out, begin, 0);
    raw.back().dq = const_cast<uint8_t*>(At(gradient, begin, 0));
    raw.back().dk = const_cast<uint8_t*>(At(gradient, begin, h * dh));
    raw.back().dv = const_cast<uint8_t*>(At(gradient, begin, (h + g) * dh));
  }
  KernelsFor(qkv).attention_backward(KernelShape(shape), raw);
  return gradient;
}

TokenLosses CrossEntropy(torch::Tensor& logits, const torch::Tensor& targets, double scale, double z_loss, bool gradient) {
  if (!OnCpuKernels(logits)) {
    const torch::Tensor counted = targets.ne(-100);
    const torch::Tensor log_sums = torch::logsumexp(logits.to(torch::kFloat), -1) * counted;
    const torch::Tensor losses = reference::CrossEntropy(logits, targets);
    if (gradient) {
      torch::Tensor p = torch::softmax(logits.to(torch::kFloat), -1) * (1 + 2 * z_loss * log_sums).unsqueeze(1);
      p.scatter_add_(1, targets.clamp_min(0).unsqueeze(1), torch::full({targets.size(0), 1}, -1.0, p.options()));
      logits.copy_(p * counted.unsqueeze(1) * scale);
    }
    return {losses, log_sums};
  }
  torch::Tensor losses = torch::empty({logits.size(0)}, logits.options().dtype(torch::kFloat)), log_sums = torch::empty_like(losses);
  KernelsFor(logits).cross_entropy(logits.size(0), logits.size(1), logits.stride(0), Data(logits), targets.data_ptr<int64_t>(), static_cast<float>(scale),
                                   static_cast<float>(z_loss), gradient, losses.data_ptr<float>(), log_sums.data_ptr<float>());
  return {losses, log_sums};
}

void Accumulate(torch::Tensor sum, const torch::Tensor& source) {
  if (!OnCpuKernels(source) || sum.scalar_type() != torch::kFloat || !sum.is_contiguous() || !source.is_contiguous()) {
    sum.add_(source);
    return;
  }
  KernelsFor(source).accumulate(source.numel(), Data(source), sum.data_ptr<float>());
}

}  // namespace membank
