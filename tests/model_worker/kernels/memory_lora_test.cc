#include "model_worker/kernels/memory_lora.h"

#include "gtest/gtest.h"
#include "model_worker/kernels/matmul.h"
#include "tests/model_worker/kernels/memory_kernel_check.h"

namespace membank {
namespace {

constexpr int64_t kIn = 20, kOuts[] = {14, 6}, kBegin = 31;   // the slice begins somewhere in the block
constexpr int64_t kPerUnit = 2 * kIn + kOuts[0] + kOuts[1];

// Two projections whose outputs are columns of one tensor; a level of two blocks, one of them on two ranges, and a level of one block.
class MemoryLoraTest : public testing::TestWithParam<torch::Dtype> {
 protected:
  void SetUp() override { torch::manual_seed(5); }
  torch::Tensor RandomBlock(int64_t width) const { return (torch::randn({kBegin + width * kPerUnit + 3}) * 0.3).to(GetParam()); }

  std::vector<MemoryLoraGroup> Level(const std::vector<const Use*>& uses, bool gradients) const {
    std::vector<MemoryLoraGroup> groups;
    for (const Use* use : uses) {
      groups.push_back(MemoryLoraSlice(use->block, gradients ? use->gradient : torch::Tensor(), kBegin, use->width, kIn, {kOuts[0], kOuts[1]}, use->rows));
    }
    return groups;
  }
  std::vector<torch::Tensor> Columns(const torch::Tensor& out) const { return {out.narrow(1, 0, kOuts[0]), out.narrow(1, kOuts[0] + 5, kOuts[1])}; }

  // What a use adds to its rows, in fp32 with autograd.
  static std::vector<torch::Tensor> Reference(const torch::Tensor& x, const torch::Tensor& block, int64_t width) {
    const auto matrix = [&](int64_t at, int64_t columns) { return block.narrow(0, kBegin + at, width * columns).view({width, columns}); };
    std::vector<torch::Tensor> outs;
    for (int64_t j = 0, b = 2 * width * kIn; j < 2; b += width * kOuts[j++]) {
      outs.push_back(2 * torch::matmul(torch::matmul(x, matrix(j * width * kIn, kIn).t()), matrix(b, kOuts[j])));
    }
    return outs;
  }
};

TEST_P(MemoryLoraTest, ForwardAndBackwardEqualAutograd) {
  const int64_t rows = 17;
  Use uses[] = {{RandomBlock(5), 5, {{0, 4}, {9, 15}}}, {RandomBlock(5), 5, {{4, 9}}}, {RandomBlock(2), 2, {{2, 12}}}, {RandomBlock(2), 2, {}}};
  for (Use& use : uses) use.gradient = torch::zeros({use.block.size(0)});   // fp32 beside any dtype
  const std::vector<const Use*> levels[] = {{&uses[0], &uses[1]}, {&uses[2], &uses[3]}};
  const torch::Tensor x = torch::randn({rows, kIn}).to(GetParam()), d_out = torch::randn({rows, kOuts[0] + 5 + kOuts[1]}).to(GetParam());
  torch::Tensor out = torch::zeros_like(d_out), dx = torch::zeros_like(x);
  for (const auto& level : levels) {
    std::vector<torch::Tensor> saved;
    MemoryLoraForward(x, Level(level, true), Columns(out), &saved);
    MemoryLoraBackward(Columns(d_out), x, Level(level, true), saved, dx);
  }

  const torch::Tensor wide_x = x.to(torch::kFloat).requires_grad_();
  torch::Tensor expected = torch::zeros({rows, d_out.size(1)});
  std::vector<torch::Tensor> inputs = {wide_x};
  for (const Use& use : uses) {
    inputs.push_back(use.block.to(torch::kFloat).requires_grad_());
    for (const auto& [begin, end] : use.rows) {
      const std::vector<torch::Tensor> added = Reference(wide_x.narrow(0, begin, end - begin), inputs.back(), use.width);
      for (int j = 0; j < 2; ++j) {
        torch::Tensor part = torch::zeros({rows, d_out.size(1)});
        Columns(part)[j].narrow(0, begin, end - begin).copy_(added[j]);
        expected = expected + part;
      }
    }
  }
  const auto exact = torch::autograd::grad({expected}, inputs, {d_out.to(torch::kFloat)}, {}, false, /*allow_unused=*/true);
  ExpectClose(out, expected, Tolerance(GetParam()), "out");
  ExpectClose(dx, exact[0], Tolerance(GetParam()), "dx");
  for (int i = 0; i < 3; ++i) ExpectClose(uses[i].gradient, exact[i + 1], Tolerance(GetParam()), "gradient of a block");
  EXPECT_EQ(uses[3].gradient.abs().max().item<double>(), 0) << "a block without rows";
  EXPECT_EQ(out.narrow(0, 15, 2).abs().max().item<double>(), 0) << "rows of no group";
  EXPECT_EQ(out.narrow(1, kOuts[0], 5).abs().max().item<double>(), 0) << "columns of no projection";
}

TEST_P(MemoryLoraTest, LevelsEqualTheirConcatenation) {
  const Use first = {RandomBlock(3), 3, {{0, 6}}, {}}, second = {RandomBlock(4), 4, {{0, 6}}, {}};
  const torch::Tensor x = torch::randn({6, kIn}).to(GetParam());
  torch::Tensor out = torch::zeros({6, kOuts[0] + 5 + kOuts[1]}, x.options());
  MemoryLoraForward(x, Level({&first}, false), Columns(out), nullptr);
  MemoryLoraForward(x, Level({&second}, false), Columns(out), nullptr);
  const std::vector<MemoryLoraGroup> groups = {Level({&first}, false)[0], Level({&second}, false)[0]};
  for (int64_t j = 0; j < 2; ++j) {
    std::vector<torch::Tensor> a, b;
    for (const MemoryLoraGroup& group : groups) {
      const int64_t width = group.b[0].size(0);
      a.push_back(group.a.narrow(0, j * width, width));
      b.push_back(group.b[j]);
    }
    const torch::Tensor wide = torch::cat(b, 0).to(torch::kFloat), deep = torch::cat(a, 0).to(torch::kFloat);
    ExpectClose(Columns(out)[j], 2 * torch::matmul(torch::matmul(x.to(torch::kFloat), deep.t()), wide), Tolerance(GetParam()), "concatenated ranks");
  }
}

TEST_P(MemoryLoraTest, AnUntouchedBlockHasNoEffect) {
  Use use = {RandomBlock(5), 5, {{0, 7}}, {}};
  const std::vector<MemoryLoraGroup> groups = Level({&use}, false);
  for (const torch::Tensor& b : groups[0].b) b.zero_();
  const torch::Tensor before = torch::randn({7, kOuts[0] + 5 + kOuts[1]}).to(GetParam());
  torch::Tensor out = before.clone();
  MemoryLoraForward(torch::randn({7, kIn}).to(GetParam()), groups, Columns(out), nullptr);
  EXPECT_TRUE(torch::equal(out, before));
}

INSTANTIATE_TEST_SUITE_P(All, MemoryLoraTest, testing::Values(torch::kFloat, torch::kBFloat16), DTypeText);

TEST(MemoryLoraSmallTest, GradientsEqualFiniteDifferences) {
  torch::manual_seed(6);
  const MemoryRowRanges rows = {{0, 4}, {6, 9}};
  const torch::Tensor x = torch::randn({9, kIn}), d_out = torch::randn({9, 6});
  torch::Tensor block = torch::randn({3 * (kIn + 6)}) * 0.3, gradient = torch::zeros_like(block), out = torch::zeros({9, 6});
  std::vector<torch::Tensor> saved;
  MemoryLoraForward(x, {MemoryLoraSlice(block, gradient, 0, 3, kIn, {6}, rows)}, {out}, &saved);
  MemoryLoraBackward({d_out}, x, {MemoryLoraSlice(block, gradient, 0, 3, kIn, {6}, rows)}, saved, {});
  ExpectFiniteDifferences(block, gradient, {1, 17, 3 * kIn - 1, 3 * kIn + 2, block.size(0) - 1}, [&]() {
    torch::Tensor y = torch::zeros({9, 6});
    MemoryLoraForward(x, {MemoryLoraSlice(block, {}, 0, 3, kIn, {6}, rows)}, {y}, nullptr);
    return (y.to(torch::kDouble) * d_out).sum().item<double>();
  });
}

}  // namespace
}  // namespace membank
