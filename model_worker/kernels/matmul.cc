#include "model_worker/kernels/matmul.h"

#include "model_worker/kernels/cpu_tensors.h"

namespace membank {
namespace {

constexpr int64_t kFewRows = 8;   // up to here a product with a weight is bound by reading it

bool Transposed(const torch::Tensor& x) { return x.stride(1) != 1 && x.size(1) > 1; }

Product Left(const torch::Tensor& a) {
  Product p;
  p.m = a.size(0);
  p.k = a.size(1);
  p.a = a.data_ptr();
  p.a_transposed = Transposed(a);
  p.a_stride = a.stride(p.a_transposed ? 1 : 0);
  return p;
}

void SetRight(const torch::Tensor& b, Product* p) {
  p->k = b.size(0);
  p->n = b.size(1);
  p->b = b.data_ptr();
  p->b_layout = Transposed(b) ? ProductLayout::kTransposed : ProductLayout::kStraight;
  p->b_stride = b.stride(Transposed(b) ? 1 : 0);
}

void Run(const torch::Tensor& out, const torch::Tensor& a, Product p, ProductOut mode) {
  p.c = out.data_ptr();
  p.c_stride = out.stride(0);
  p.out = mode;
  KernelsFor(a).product(p);
}

void RunProduct(const torch::Tensor& out, const torch::Tensor& a, const torch::Tensor& b, ProductOut mode) {
  Product p = Left(a);
  SetRight(b, &p);
  Run(out, a, p, mode);
}

torch::Tensor Pack(const torch::Tensor& b) {
  Product p;
  SetRight(b, &p);
  torch::Tensor packed = torch::empty({KernelsFor(b).packed_bytes(p.n, p.k)}, b.options().dtype(torch::kByte));
  KernelsFor(b).pack(p, packed.data_ptr());
  return packed;
}

void RunPacked(const torch::Tensor& out, const torch::Tensor& a, const torch::Tensor& packed) {
  Product p = Left(a);
  p.n = out.size(1);
  p.b = packed.data_ptr();
  p.b_layout = ProductLayout::kPacked;
  Run(out, a, p, ProductOut::kStore);
}

}  // namespace

torch::Tensor MatMul(const torch::Tensor& a, const torch::Tensor& b) {
  torch::Tensor out = torch::empty({a.size(0), b.size(1)}, a.options());
  MatMulOut(out, a, b);
  return out;
}

void MatMulOut(torch::Tensor out, const torch::Tensor& a, const torch::Tensor& b) {
  if (OnCpuKernels(a)) return RunProduct(out, a, b, ProductOut::kStore);
  torch::mm_out(out, a, b);
}

void AddMatMul(torch::Tensor out, const torch::Tensor& a, const torch::Tensor& b) {
  const bool widens = out.scalar_type() != a.scalar_type();
  if (OnCpuKernels(a)) return RunProduct(out, a, b, widens ? ProductOut::kAddF32 : ProductOut::kAdd);
  if (widens) {
    out.add_(torch::mm(a, b));
  } else {
    out.addmm_(a, b);
  }
}

void Projection::LayOut() const {
  forward_ = Pack(w_.t());
  backward_ = Pack(w_);
}

torch::Tensor Projection::Forward(const torch::Tensor& x) const {
  torch::Tensor y = torch::empty({x.size(0), w_.size(0)}, x.options());
  ForwardOut(y, x);
  return y;
}

void Projection::ForwardOut(torch::Tensor y, const torch::Tensor& x) const {
  if (OnCpuKernels(x) && x.size(0) <= kFewRows && x.is_contiguous() && y.is_contiguous()) {
    return KernelsFor(x).linear(x.size(0), w_.size(0), w_.size(1), x.data_ptr(), w_.data_ptr(), y.data_ptr());
  }
  if (forward_.defined()) return RunPacked(y, x, forward_);
  MatMulOut(y, x, w_.t());
}

torch::Tensor Projection::InputGradient(const torch::Tensor& dy) const {
  torch::Tensor dx = torch::empty({dy.size(0), w_.size(1)}, dy.options());
  InputGradientOut(dx, dy);
  return dx;
}

void Projection::InputGradientOut(torch::Tensor dx, const torch::Tensor& dy) const {
  if (frozen_ && OnCpuKernels(dy) && !backward_.defined()) LayOut();
  if (backward_.defined()) return RunPacked(dx, dy, backward_);
  MatMulOut(dx, dy, w_);
}

}  // namespace membank
