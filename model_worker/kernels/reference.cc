#include "model_worker/kernels/reference.h"

namespace membank::reference {

torch::Tensor Norm(const NormForm& form, const torch::Tensor& x, const torch::Tensor& weight, const torch::Tensor& bias) {
  torch::Tensor wide = x.to(torch::kFloat);
  if (form.center) wide = wide - wide.mean(-1, true);
  torch::Tensor y = wide * torch::rsqrt(wide.pow(2).mean(-1, true) + form.epsilon) * (weight.to(torch::kFloat) + form.offset);
  if (bias.defined()) y = y + bias.to(torch::kFloat);
  return y.to(x.scalar_type());
}

torch::Tensor Rope(const torch::Tensor& x, int64_t heads, int64_t head_dim, const torch::Tensor& positions, const RopeTable& table) {
  const int64_t rows = x.size(0), half = table.cos.size(1);
  const torch::Tensor in = x.narrow(1, 0, heads * head_dim).reshape({rows, heads, head_dim});
  const torch::Tensor low = in.narrow(2, 0, half).to(torch::kFloat), high = in.narrow(2, half, half).to(torch::kFloat);   // [N, heads, m]
  const torch::Tensor cos = table.cos.index_select(0, positions).unsqueeze(1), sin = table.sin.index_select(0, positions).unsqueeze(1);
  const torch::Tensor turned = torch::cat({low * cos - high * sin, high * cos + low * sin}, 2).to(x.scalar_type());
  const torch::Tensor y = torch::cat({turned, in.narrow(2, 2 * half, head_dim - 2 * half)}, 2).reshape({rows, heads * head_dim});
  return torch::cat({y, x.narrow(1, heads * head_dim, x.size(1) - heads * head_dim)}, 1);
}

torch::Tensor Activate(const FfnForm& form, const torch::Tensor& in) {
  const torch::Tensor wide = in.to(torch::kFloat);
  const int64_t inner = in.size(1) / (form.gated ? 2 : 1);
  const auto act = [&](const torch::Tensor& x) {
    if (form.activation == Activation::kSilu) return torch::silu(x);
    return torch::gelu(x, form.activation == Activation::kGeluTanh ? "tanh" : "none");
  };
  const torch::Tensor h = form.gated ? act(wide.narrow(1, 0, inner)) * wide.narrow(1, inner, inner) : act(wide);
  return h.to(in.scalar_type());
}

torch::Tensor Attention(const torch::Tensor& qkv, const Heads& shape, const std::vector<AttentionRows>& segments) {
  const int64_t h = shape.heads, g = shape.kv_heads, dh = shape.head_dim;
  std::vector<torch::Tensor> outs;
  for (const AttentionRows& s : segments) {
    const int64_t rows = s.end - s.begin;
    const torch::Tensor all = qkv.narrow(0, s.begin, rows).to(torch::kFloat);
    const torch::Tensor q = all.narrow(1, 0, h * dh).reshape({rows, g, h / g, dh}).permute({1, 2, 0, 3});               // [g, h/g, T, dh]
    torch::Tensor k = all.narrow(1, h * dh, g * dh).reshape({rows, g, dh}).transpose(0, 1);                            // [g, keys, dh]
    torch::Tensor v = all.narrow(1, (h + g) * dh, g * dh).reshape({rows, g, dh}).transpose(0, 1);
    if (s.keys.defined()) {
      k = s.keys.narrow(1, 0, s.length).to(torch::kFloat);
      v = s.values.narrow(1, 0, s.length).to(torch::kFloat);
    }
    const int64_t keys = k.size(1);
    const torch::Tensor all_pairs = torch::ones({rows, keys}, q.options().dtype(torch::kBool));
    torch::Tensor hidden = all_pairs.triu(keys - rows + 1);
    if (shape.window > 0) hidden = hidden.logical_or(all_pairs.tril(keys - rows - shape.window));
    const torch::Tensor scores = torch::matmul(q, k.unsqueeze(1).transpose(2, 3)) * shape.Scale();
    const torch::Tensor p = torch::softmax(scores.masked_fill(hidden, -INFINITY), -1);
    outs.push_back(torch::matmul(p, v.unsqueeze(1)).permute({2, 0, 1, 3}).reshape({rows, h * dh}));
  }
  return torch::cat(outs, 0).to(qkv.scalar_type());
}

torch::Tensor CrossEntropy(const torch::Tensor& logits, const torch::Tensor& targets) {
  return torch::nn::functional::cross_entropy(logits.to(torch::kFloat), targets,
                                              torch::nn::functional::CrossEntropyFuncOptions().reduction(torch::kNone).ignore_index(-100));
}

torch::Tensor MemoryFfn(const torch::Tensor& x, const torch::Tensor& w1, const torch::Tensor& w2, const torch::Tensor& w3t, Activation activation) {
  return torch::matmul(Activate({activation, true}, torch::cat({torch::matmul(x, w1.t()), torch::matmul(x, w2.t())}, 1)), w3t);
}

}  // namespace membank::reference
