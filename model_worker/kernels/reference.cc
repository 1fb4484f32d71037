#include "model_worker/kernels/reference.h"

namespace membank::reference {

torch::Tensor RmsNorm(const torch::Tensor& x, const torch::Tensor& weight, double epsilon) {
  const torch::Tensor wide = x.to(torch::kFloat);
  const torch::Tensor y = wide * torch::rsqrt(wide.pow(2).mean(-1, true) + epsilon) * weight.to(torch::kFloat);
  return y.to(x.scalar_type());
}

torch::Tensor Rope(const torch::Tensor& x, int64_t heads, int64_t head_dim, const torch::Tensor& positions, const RopeTable& table) {
  const int64_t rows = x.size(0), half = head_dim / 2;
  const torch::Tensor turned = x.narrow(1, 0, heads * head_dim).reshape({rows, heads, 2, half}).to(torch::kFloat);
  const torch::Tensor low = turned.select(2, 0), high = turned.select(2, 1);   // [N, heads, dh/2]
  const torch::Tensor cos = table.cos.index_select(0, positions).unsqueeze(1), sin = table.sin.index_select(0, positions).unsqueeze(1);
  const torch::Tensor y = torch::stack({low * cos - high * sin, high * cos + low * sin}, 2).reshape({rows, heads * head_dim});
  return torch::cat({y.to(x.scalar_type()), x.narrow(1, heads * head_dim, x.size(1) - heads * head_dim)}, 1);
}

torch::Tensor SwiGlu(const torch::Tensor& gate_up) {
  const int64_t inner = gate_up.size(1) / 2;
  const torch::Tensor wide = gate_up.to(torch::kFloat);
  return (torch::silu(wide.narrow(1, 0, inner)) * wide.narrow(1, inner, inner)).to(gate_up.scalar_type());
}

torch::Tensor Attention(const torch::Tensor& qkv, const Heads& shape, const std::vector<AttentionRows>& segments) {
  const auto [h, g, dh] = shape;
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
    const torch::Tensor hidden = torch::ones({rows, keys}, q.options().dtype(torch::kBool)).triu(keys - rows + 1);
    const torch::Tensor scores = torch::matmul(q, k.unsqueeze(1).transpose(2, 3)) / std::sqrt(static_cast<double>(dh));
    const torch::Tensor p = torch::softmax(scores.masked_fill(hidden, -INFINITY), -1);
    outs.push_back(torch::matmul(p, v.unsqueeze(1)).permute({2, 0, 1, 3}).reshape({rows, h * dh}));
  }
  return torch::cat(outs, 0).to(qkv.scalar_type());
}

torch::Tensor CrossEntropy(const torch::Tensor& logits, const torch::Tensor& targets) {
  return torch::nn::functional::cross_entropy(logits.to(torch::kFloat), targets,
                                              torch::nn::functional::CrossEntropyFuncOptions().reduction(torch::kNone).ignore_index(-100));
}

torch::Tensor MemoryFfn(const torch::Tensor& x, const torch::Tensor& w1, const torch::Tensor& w2, const torch::Tensor& w3t) {
  return torch::matmul(torch::silu(torch::matmul(x, w1.t())) * torch::matmul(x, w2.t()), w3t);
}

}  // namespace membank::reference
