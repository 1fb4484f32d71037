// Matrix products of the model outside autograd: ours on the CPU (fp32, bf16), ATen elsewhere. One thread at a time per call; any thread.
#pragma once

#include <torch/torch.h>

namespace membank {

// [m, k] x [k, n]; either may be a transposed view, rows may be strided.
torch::Tensor MatMul(const torch::Tensor& a, const torch::Tensor& b);
void MatMulOut(torch::Tensor out, const torch::Tensor& a, const torch::Tensor& b);   // out = a b
void AddMatMul(torch::Tensor out, const torch::Tensor& a, const torch::Tensor& b);   // out += a b; out may be fp32 beside bf16 factors

// A weight [out, in] as Hugging Face stores it, y = x w^T, and its products in both directions. A frozen weight on the CPU is laid out for
// them once, when the first gradient is asked for (25 % at 35 rows, 8 % at 350): who only serves never holds the two copies. Changes of a
// weight that is not frozen are seen.
class Projection {
 public:
  Projection(torch::Tensor w, bool frozen) : w_(std::move(w)), frozen_(frozen) {}

  const torch::Tensor& w() const { return w_; }
  torch::Tensor Forward(const torch::Tensor& x) const;                         // [N, in] -> [N, out]
  void ForwardOut(torch::Tensor y, const torch::Tensor& x) const;
  torch::Tensor InputGradient(const torch::Tensor& dy) const;                  // [N, out] -> [N, in]
  void InputGradientOut(torch::Tensor dx, const torch::Tensor& dy) const;

 private:
  void LayOut() const;

  torch::Tensor w_;
  bool frozen_;
  mutable torch::Tensor forward_, backward_;   // w^T and w in the product's own layout; undefined until the first gradient
};

}  // namespace membank
