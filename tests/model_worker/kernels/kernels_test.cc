// Every table of cpu_kernels.h against plain ATen (reference.h), through raw pointers so that both instruction sets are covered; the tensor
// wrappers' memory FFN against autograd, finite differences and the emulated CUDA grid.
#include <torch/torch.h>

#include "gtest/gtest.h"
#include "model_worker/kernels/cpu_kernels.h"
#include "model_worker/kernels/memory_ffn.h"
#include "model_worker/kernels/memory_ffn_cuda.h"
#include "model_worker/kernels/ops.h"
#include "model_worker/kernels/reference.h"

namespace membank {
namespace {

double MaxAbs(const torch::Tensor& a, const torch::Tensor& b) {
  return (a.to(torch::kDouble) - b.to(torch::kDouble)).abs().max().item<double>();
}

class CpuKernelsTest : public testing::TestWithParam<std::tuple<KernelIsa, torch::Dtype>> {
 protected:
  void SetUp() override {
    torch::manual_seed(3);
    if (!Supported(std::get<0>(GetParam()))) GTEST_SKIP() << "this CPU lacks the instruction set";
  }
  torch::Dtype dtype() const { return std::get<1>(GetParam()); }
  const CpuKernels& kernels() const {
    return Kernels(dtype() == torch::kFloat ? KernelType::kF32 : KernelType::kBF16, std::get<0>(GetParam()));
  }
  double tolerance() const { return dtype() == torch::kFloat ? 2e-5 : 4e-2; }   // bf16: one rounding of values up to about 8
  torch::Tensor Random(std::vector<int64_t> shape) const { return torch::randn(shape).to(dtype()); }
  // d f(inputs) / d inputs[0] by autograd
  template <typename F>
  torch::Tensor Gradient(const torch::Tensor& input, const torch::Tensor& d_out, F f) const {
    const torch::Tensor x = input.detach().to(torch::kFloat).requires_grad_();
    return torch::autograd::grad({f(x)}, {x}, {d_out.to(torch::kFloat)})[0];
  }
};

TEST_P(CpuKernelsTest, Norm) {
  const int64_t rows = 37, d = 83;
  const torch::Tensor x = Random({rows, d}), addend = Random({rows, d}), weight = Random({d}), bias = Random({d}), dy = Random({rows, d});
  for (const bool center : {false, true}) {
    for (const double offset : {0.0, 1.0}) {
      const NormForm form{1e-5, offset, center};
      const NormShape shape{rows, d, 1e-5f, static_cast<float>(offset), center};
      const torch::Tensor used_bias = center ? bias : torch::Tensor();
      torch::Tensor sum = torch::empty_like(x), y = torch::empty_like(x), dx = torch::empty_like(x), mean = torch::empty({rows}), inv = torch::empty({rows});
      kernels().norm(shape, x.data_ptr(), addend.data_ptr(), sum.data_ptr(), weight.data_ptr(), center ? bias.data_ptr() : nullptr, y.data_ptr(),
                     mean.data_ptr<float>(), inv.data_ptr<float>());
      EXPECT_TRUE(torch::equal(sum, x + addend));
      const torch::Tensor wide = sum.to(torch::kFloat);
      EXPECT_LE(MaxAbs(y, reference::Norm(form, wide, weight, used_bias)), tolerance());
      torch::Tensor d_weight = torch::zeros({d}), d_bias = torch::zeros({d});
      kernels().norm_backward(shape, dy.data_ptr(), sum.data_ptr(), weight.data_ptr(), mean.data_ptr<float>(), inv.data_ptr<float>(), addend.data_ptr(),
                              dx.data_ptr(), d_weight.data_ptr<float>(), d_bias.data_ptr<float>());
      const auto norm = [&](const torch::Tensor& in) { return reference::Norm(form, in, weight.to(torch::kFloat), used_bias); };
      EXPECT_LE(MaxAbs(dx, Gradient(sum, dy, norm) + addend.to(torch::kFloat)), 2 * tolerance());
      const auto by_weight = [&](const torch::Tensor& w) { return reference::Norm(form, wide, w, used_bias); };
      EXPECT_LE(MaxAbs(d_weight, Gradient(weight, dy, by_weight)), 1e-4);
      EXPECT_LE(MaxAbs(d_bias, dy.to(torch::kFloat).sum(0)), 1e-4);
    }
  }
}

TEST_P(CpuKernelsTest, RopeTurnsAndTurnsBack) {
  const int64_t rows = 9, heads = 3, head_dim = 20;
  const torch::Tensor positions = torch::arange(rows) * 5;
  for (const int64_t turned : {int64_t{6}, head_dim}) {
    torch::Tensor x = Random({rows, heads * head_dim + 7});
    const torch::Tensor before = x.clone();
    const RopeTable table = MakeRopeTable(64, 1 / torch::pow(10000.0, torch::arange(0, turned, 2) / static_cast<double>(turned)), dtype(), torch::kCPU);
    const auto turn = [&](bool inverse) {
      kernels().rope(rows, heads, head_dim, turned, x.stride(0), x.data_ptr(), positions.data_ptr<int64_t>(), table.cos.data_ptr<float>(),
                     table.sin.data_ptr<float>(), inverse);
    };
    turn(false);
    EXPECT_LE(MaxAbs(x, reference::Rope(before.to(torch::kFloat), heads, head_dim, positions, table)), tolerance());
    turn(true);
    EXPECT_LE(MaxAbs(x, before), tolerance());
  }
}

TEST_P(CpuKernelsTest, Activations) {
  const int64_t rows = 11, inner = 45;
  for (const Activation activation : {Activation::kSilu, Activation::kGelu, Activation::kGeluTanh}) {
    for (const bool gated : {true, false}) {
      const FfnForm form{activation, gated};
      const torch::Tensor in = Random({rows, (gated ? 2 : 1) * inner}) * 3, dh = Random({rows, inner});
      torch::Tensor h = torch::empty_like(dh), again = torch::empty_like(dh), d_in = torch::empty_like(in);
      kernels().activate(activation, gated, rows, inner, in.data_ptr(), h.data_ptr());
      const double bound = dtype() == torch::kFloat ? 6e-5 : 0.5;   // one rounding of products up to about 100
      EXPECT_LE(MaxAbs(h, reference::Activate(form, in.to(torch::kFloat))), bound);
      kernels().activate_backward(activation, gated, rows, inner, in.data_ptr(), dh.data_ptr(), d_in.data_ptr(), again.data_ptr());
      EXPECT_TRUE(torch::equal(h, again));
      EXPECT_LE(MaxAbs(d_in, Gradient(in, dh, [&](const torch::Tensor& x) { return reference::Activate(form, x); })), bound);
    }
  }
}

// Segments shorter than, equal to and longer than the tiles, grouped heads, a head size that is no multiple of the vector; windows smaller
// than a tile, about one, larger; a scale of its own.
TEST_P(CpuKernelsTest, AttentionForwardAndBackward) {
  for (const Heads& shape : {Heads{6, 2, 24}, Heads{6, 2, 24, 0.3, 2}, Heads{6, 2, 24, 0, 33}, Heads{6, 2, 24, 0, 70}}) {
    const std::vector<AttentionRows> rows = {{0, 3, {}, {}, 0}, {3, 35, {}, {}, 0}, {35, 36, {}, {}, 0}, {36, 117, {}, {}, 0}};
    const AttentionShape raw_shape{shape.heads, shape.kv_heads, shape.head_dim, static_cast<float>(shape.Scale()), shape.window};
    const int64_t width = (shape.heads + 2 * shape.kv_heads) * shape.head_dim, inner = shape.heads * shape.head_dim;
    const torch::Tensor qkv = Random({117, width}), d_out = Random({117, inner});
    torch::Tensor out = torch::empty({117, inner}, qkv.options()), gradient = torch::empty_like(qkv);
    std::vector<torch::Tensor> log_sums;
    std::vector<AttentionSegment> segments;
    const auto at = [](const torch::Tensor& x, int64_t row, int64_t column) {
      return static_cast<uint8_t*>(x.data_ptr()) + (row * x.stride(0) + column) * x.element_size();
    };
    for (const AttentionRows& r : rows) {
      log_sums.push_back(torch::empty({shape.heads, r.end - r.begin}));
      AttentionSegment s;
      const int64_t k = shape.heads * shape.head_dim, v = k + shape.kv_heads * shape.head_dim;
      s.q = at(qkv, r.begin, 0), s.k = at(qkv, r.begin, k), s.v = at(qkv, r.begin, v);
      s.out = at(out, r.begin, 0), s.d_out = at(d_out, r.begin, 0);
      s.dq = at(gradient, r.begin, 0), s.dk = at(gradient, r.begin, k), s.dv = at(gradient, r.begin, v);
      s.log_sum = log_sums.back().data_ptr<float>();
      s.queries = s.keys = r.end - r.begin;
      s.q_stride = s.k_stride = width, s.kv_head_stride = shape.head_dim, s.out_stride = inner;
      segments.push_back(s);
    }
    kernels().attention(raw_shape, segments);
    const auto f = [&](const torch::Tensor& in) { return reference::Attention(in, shape, rows); };
    EXPECT_LE(MaxAbs(out, f(qkv.to(torch::kFloat))), tolerance());
    kernels().attention_backward(raw_shape, segments);
    EXPECT_LE(MaxAbs(gradient, Gradient(qkv, d_out, f)), 3 * tolerance());
  }
}

TEST_P(CpuKernelsTest, LinearOfFewRows) {
  const torch::Tensor w = Random({131, 77});
  for (int64_t rows = 1; rows <= 8; ++rows) {
    const torch::Tensor x = Random({rows, 77});
    torch::Tensor y = torch::empty({rows, 131}, x.options());
    kernels().linear(rows, 131, 77, x.data_ptr(), w.data_ptr(), y.data_ptr());
    const torch::Tensor expected = torch::matmul(x.to(torch::kDouble), w.to(torch::kDouble).t());
    EXPECT_LE(MaxAbs(y, expected), 3 * tolerance()) << rows << " rows";
  }
}

// Every number of rows of a block, ragged panels, odd depths, more than one step of depth, both storage orders, all three ways out.
TEST_P(CpuKernelsTest, MatrixProduct) {
  const auto run = [&](int64_t m, int64_t n, int64_t k, bool a_transposed, bool b_transposed, ProductOut out) {
    const int64_t gap = 3;   // between rows
    const torch::Tensor a = Random(a_transposed ? std::vector<int64_t>{k, m + gap} : std::vector<int64_t>{m, k + gap});
    const torch::Tensor b = Random(b_transposed ? std::vector<int64_t>{n, k + gap} : std::vector<int64_t>{k, n + gap});
    torch::Tensor c = torch::randn({m, n + gap}).to(out == ProductOut::kAddF32 ? torch::kFloat : dtype());
    const torch::Tensor a_part = a_transposed ? a.narrow(1, 0, m).t() : a.narrow(1, 0, k);
    const torch::Tensor b_part = b_transposed ? b.narrow(1, 0, k).t() : b.narrow(1, 0, n);
    torch::Tensor expected = c.to(torch::kDouble).clone();
    if (out == ProductOut::kStore) expected.narrow(1, 0, n).zero_();
    expected.narrow(1, 0, n).add_(torch::matmul(a_part.to(torch::kDouble), b_part.to(torch::kDouble)));
    const ProductLayout layout = b_transposed ? ProductLayout::kTransposed : ProductLayout::kStraight;
    Product product{m, n, k, a.data_ptr(), a.size(1), a_transposed, b.data_ptr(), b.size(1), layout, c.data_ptr(), n + gap, out};
    torch::Tensor packed_c = c.clone(), packed = torch::empty({kernels().packed_bytes(n, k)}, torch::kByte);
    kernels().product(product);
    const double bound = out != ProductOut::kAddF32 && dtype() == torch::kBFloat16 ? 5e-3 : 4e-6;   // of the largest element
    EXPECT_LE(MaxAbs(c, expected), bound * (1 + expected.abs().max().item<double>()))
        << m << "x" << n << "x" << k << (a_transposed ? " a^T" : "") << (b_transposed ? " b^T" : "") << " out " << static_cast<int>(out);
    kernels().pack(product, packed.data_ptr());
    product.b = packed.data_ptr(), product.b_layout = ProductLayout::kPacked, product.c = packed_c.data_ptr();
    kernels().product(product);
    EXPECT_TRUE(torch::equal(c, packed_c)) << m << "x" << n << "x" << k;
  };
  for (int64_t m = 1; m <= 26; ++m) run(m, 70, 37, false, m % 2 == 0, ProductOut::kStore);
  for (const bool a_transposed : {false, true}) {
    for (const bool b_transposed : {false, true}) {
      for (const ProductOut out : {ProductOut::kStore, ProductOut::kAdd, ProductOut::kAddF32}) {
        run(29, 65, 64, a_transposed, b_transposed, out);
        run(14, 32, 3301, a_transposed, b_transposed, out);
        run(3, 5, 1, a_transposed, b_transposed, out);
      }
    }
  }
}

// What a row becomes depends on neither the other rows nor the threads.
TEST_P(CpuKernelsTest, MatrixProductOfARowIsAlwaysTheSame) {
  const int64_t n = 131, k = 3001;
  const torch::Tensor a = Random({40, k}), b = Random({n, k});
  const auto product = [&](int64_t begin, int64_t rows) {
    torch::Tensor c = torch::empty({rows, n}, a.options());
    kernels().product({rows, n, k, a.narrow(0, begin, rows).data_ptr(), k, false, b.data_ptr(), k, ProductLayout::kTransposed, c.data_ptr(), n,
                       ProductOut::kStore});
    return c;
  };
  const torch::Tensor whole = product(0, 40);
  const int threads = at::get_num_threads();
  at::set_num_threads(1);
  for (const auto& [begin, rows] : {std::pair<int64_t, int64_t>{0, 1}, {5, 7}, {17, 23}}) {
    EXPECT_TRUE(torch::equal(product(begin, rows), whole.narrow(0, begin, rows))) << rows << " rows from " << begin;
  }
  at::set_num_threads(threads);
}

TEST_P(CpuKernelsTest, CrossEntropyAndItsGradient) {
  const torch::Tensor logits = Random({5, 5003}) * 2;
  const torch::Tensor targets = torch::tensor({3, -100, 5002, 0, 77}, torch::kLong);
  const torch::Tensor counted = targets.ne(-100), wide = logits.to(torch::kFloat);
  for (const double z_loss : {0.0, 0.05}) {
    torch::Tensor work = torch::empty({5, 5010}, logits.options()).narrow(1, 0, 5003).copy_(logits);
    torch::Tensor losses = torch::empty({5}), log_sums = torch::empty({5});
    kernels().cross_entropy(5, 5003, 5010, work.data_ptr(), targets.data_ptr<int64_t>(), 0.25f, static_cast<float>(z_loss), true,
                            losses.data_ptr<float>(), log_sums.data_ptr<float>());
    const auto f = [&](const torch::Tensor& in) {
      return reference::CrossEntropy(in, targets) + z_loss * torch::logsumexp(in.to(torch::kFloat), -1).square() * counted;
    };
    EXPECT_LE(MaxAbs(losses, reference::CrossEntropy(wide, targets)), 2e-5);
    EXPECT_LE(MaxAbs(log_sums, torch::logsumexp(wide, -1) * counted), 2e-5);
    EXPECT_LE(MaxAbs(work, Gradient(logits, torch::full({5}, 0.25), f)), dtype() == torch::kFloat ? 1e-6 : 1e-3) << z_loss;
  }
}

TEST_P(CpuKernelsTest, AccumulateIsFp32) {
  const torch::Tensor source = Random({20001});
  torch::Tensor sum = torch::ones({20001});
  kernels().accumulate(20001, source.data_ptr(), sum.data_ptr<float>());
  EXPECT_TRUE(torch::equal(sum, source.to(torch::kFloat) + 1));
}

TEST_P(CpuKernelsTest, MemoryFfnOfFewRows) {
  const int64_t r = 19, d = 70;
  const torch::Tensor x = Random({6, d}), a = Random({3 * r, d}) * 0.2, b = Random({3 * r, d}) * 0.2;
  torch::Tensor out = Random({6, d});
  torch::Tensor expected = out.to(torch::kFloat).clone();
  std::vector<MemoryRows> rows;
  const auto add = [&](const torch::Tensor& block, int64_t begin, int64_t end) {
    const torch::Tensor w = block.to(torch::kFloat);
    rows.push_back({block.data_ptr(), block.narrow(0, 2 * r, r).data_ptr(), begin, end});
    expected.narrow(0, begin, end - begin).add_(reference::MemoryFfn(x.narrow(0, begin, end - begin).to(torch::kFloat), w.narrow(0, 0, r),
                                                                     w.narrow(0, r, r), w.narrow(0, 2 * r, r)));
  };
  add(a, 0, 2);
  add(b, 3, 4);
  add(a, 5, 6);
  kernels().memory_ffn(Activation::kSilu, r, d, x.data_ptr(), out.data_ptr(), rows);
  EXPECT_LE(MaxAbs(out, expected), tolerance());
}

INSTANTIATE_TEST_SUITE_P(All, CpuKernelsTest,
                         testing::Combine(testing::Values(KernelIsa::kAvx2, KernelIsa::kAvx512), testing::Values(torch::kFloat, torch::kBFloat16)),
                         [](const auto& info) {
                           return std::string(std::get<0>(info.param) == KernelIsa::kAvx2 ? "Avx2" : "Avx512") +
                                  (std::get<1>(info.param) == torch::kFloat ? "F32" : "BF16");
                         });

// Two blocks, one of them on two ranges of rows, two layers: the gradient must land in the slice of layer 1 and nowhere else.
TEST(MemoryFfnTest, GradientsEqualAutogradAndFiniteDifferences) {
  torch::manual_seed(5);
  const int64_t r = 5, d = 12, rows = 17;
  const std::vector<std::pair<int64_t, int64_t>> first = {{0, 4}, {9, 15}}, second = {{4, 9}};
  const torch::Tensor x = torch::randn({rows, d}), d_out = torch::randn({rows, d});
  const torch::Tensor blocks[] = {torch::randn({2 * 3 * r * d}) * 0.3, torch::randn({2 * 3 * r * d}) * 0.3};
  torch::Tensor gradients[] = {torch::zeros({2 * 3 * r * d}), torch::zeros({2 * 3 * r * d})};
  const auto groups = [&](bool gradient) {
    return std::vector<MemoryFfnGroup>{MemoryFfnSlice(blocks[0], gradient ? gradients[0] : torch::Tensor(), 1, r, d, first),
                                       MemoryFfnSlice(blocks[1], gradient ? gradients[1] : torch::Tensor(), 1, r, d, second)};
  };
  const auto loss = [&]() {
    torch::Tensor out = torch::zeros({rows, d});
    std::vector<torch::Tensor> saved;
    MemoryFfnForward(Activation::kSilu, x, groups(false), out, &saved);
    return (out.to(torch::kDouble) * d_out).sum().item<double>();
  };
  torch::Tensor out = torch::zeros({rows, d}), dx = torch::zeros({rows, d});
  std::vector<torch::Tensor> saved;
  MemoryFfnForward(Activation::kSilu, x, groups(true), out, &saved);
  MemoryFfnBackward(Activation::kSilu, d_out, x, groups(true), saved, dx);
  for (int b = 0; b < 2; ++b) EXPECT_EQ(gradients[b].narrow(0, 0, 3 * r * d).abs().max().item<double>(), 0) << "layer 0 of block " << b;

  const torch::Tensor at = x.clone().requires_grad_(), w = blocks[1].narrow(0, 3 * r * d, 3 * r * d).view({3, r, d}).clone().requires_grad_();
  const auto exact = torch::autograd::grad({reference::MemoryFfn(at.narrow(0, 4, 5), w[0], w[1], w[2])}, {at, w}, {d_out.narrow(0, 4, 5)});
  EXPECT_LE(MaxAbs(dx.narrow(0, 4, 5), exact[0].narrow(0, 4, 5)), 1e-5);
  EXPECT_LE(MaxAbs(gradients[1].narrow(0, 3 * r * d, 3 * r * d), exact[1].reshape({-1})), 1e-5);
  EXPECT_EQ(dx.narrow(0, 15, 2).abs().max().item<double>(), 0) << "rows of no group";

  constexpr float kStep = 1e-2f;
  for (const int64_t i : {3 * r * d + 1, 4 * r * d + 7, 5 * r * d + 3, 6 * r * d - 1}) {   // gate, up, down, last
    float& value = blocks[0].data_ptr<float>()[i];
    const float before = value;
    value = before + kStep;
    const double above = loss();
    value = before - kStep;
    const double below = loss();
    value = before;
    EXPECT_NEAR(gradients[0][i].item<double>(), (above - below) / (2 * kStep), 5e-3) << "element " << i;
  }
}

TEST(MemoryFfnCudaTest, EmulatedGridEqualsReference) {
  torch::manual_seed(6);
  const int64_t rows = 5, r = 21, d = 300;   // more than one block of threads, no multiple of either
  const torch::Tensor a = (torch::randn({3 * r, d}) * 0.1).to(torch::kBFloat16), b = (torch::randn({3 * r, d}) * 0.1).to(torch::kBFloat16);
  const torch::Tensor x = torch::randn({rows, d}).to(torch::kBFloat16);
  torch::Tensor out = torch::randn({rows, d}).to(torch::kBFloat16), expected = out.to(torch::kFloat).clone();
  const torch::Tensor* used[] = {&a, nullptr, &b, &a, &b};
  std::vector<const uint16_t*> slices;
  for (int64_t row = 0; row < rows; ++row) {
    slices.push_back(used[row] != nullptr ? static_cast<const uint16_t*>(used[row]->data_ptr()) : nullptr);
    if (used[row] == nullptr) continue;
    const torch::Tensor w = used[row]->to(torch::kFloat);
    expected.narrow(0, row, 1).add_(reference::MemoryFfn(x.narrow(0, row, 1).to(torch::kFloat), w.narrow(0, 0, r), w.narrow(0, r, r), w.narrow(0, 2 * r, r)));
  }
  torch::Tensor hidden = torch::empty({rows, r});
  EmulateMemoryFfnCuda({slices.data(), static_cast<const uint16_t*>(x.data_ptr()), static_cast<uint16_t*>(out.data_ptr()), hidden.data_ptr<float>(),
                        rows, r, d});
  EXPECT_LE(MaxAbs(out, expected), 4e-2);
  EXPECT_TRUE(torch::equal(out[1].to(torch::kFloat), expected[1]));
}

}  // namespace
}  // namespace membank
