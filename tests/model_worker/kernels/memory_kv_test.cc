#include "model_worker/kernels/memory_kv.h"

#include "gtest/gtest.h"
#include "tests/model_worker/kernels/memory_kernel_check.h"

namespace membank {
namespace {

constexpr int64_t kHeads = 3, kHeadDim = 8, kColumns = kHeads * kHeadDim, kBegin = 31;   // the slice begins somewhere in the block
constexpr double kScale = 0.4;

// A bank of two levels; blocks on one and on two ranges, rows with both levels, with one, with none.
class MemoryKvTest : public testing::TestWithParam<torch::Dtype> {
 protected:
  void SetUp() override {
    torch::manual_seed(5);
    uses_ = {{RandomBlock(5), 5, {{0, 4}, {9, 15}}}, {RandomBlock(5), 5, {{4, 9}}}, {RandomBlock(2), 2, {{2, 12}}}, {RandomBlock(2), 2, {}}};
    for (Use& use : uses_) use.gradient = torch::zeros({use.block.size(0)});   // fp32 beside any dtype
  }
  torch::Tensor RandomBlock(int64_t width) const { return torch::randn({kBegin + 2 * width * kColumns + 3}).to(GetParam()); }

  std::vector<MemoryKvGroup> Groups() const {
    std::vector<MemoryKvGroup> groups;
    for (const Use& use : uses_) groups.push_back(MemoryKvSlice(use.block, use.gradient, kBegin, use.width, kColumns, use.rows));
    return groups;
  }

  // Row by row: one softmax over the keys of all its blocks, concatenated. fp32 with autograd.
  torch::Tensor Reference(const torch::Tensor& q, const std::vector<torch::Tensor>& blocks) const {
    std::vector<torch::Tensor> outs;
    for (int64_t row = 0; row < q.size(0); ++row) {
      std::vector<torch::Tensor> keys, values;
      for (size_t i = 0; i < uses_.size(); ++i) {
        const int64_t width = uses_[i].width, matrix = width * kColumns;
        for (const auto& [begin, end] : uses_[i].rows) {
          if (row < begin || row >= end) continue;
          keys.push_back(blocks[i].narrow(0, kBegin, matrix).view({width, kHeads, kHeadDim}));
          values.push_back(blocks[i].narrow(0, kBegin + matrix, matrix).view({width, kHeads, kHeadDim}));
        }
      }
      if (keys.empty()) {
        outs.push_back(torch::zeros({kColumns}));
        continue;
      }
      const torch::Tensor k = torch::cat(keys, 0).transpose(0, 1), v = torch::cat(values, 0).transpose(0, 1);     // [h, units, dh]
      const torch::Tensor scores = torch::matmul(k, q[row].view({kHeads, kHeadDim, 1})).transpose(1, 2) * kScale; // [h, 1, units]
      outs.push_back(torch::matmul(torch::softmax(scores, 2), v).reshape({kColumns}));
    }
    return torch::stack(outs, 0);
  }

  std::vector<Use> uses_;
};

TEST_P(MemoryKvTest, ForwardAndBackwardEqualAutograd) {
  const int64_t rows = 17;
  const torch::Tensor wide = torch::randn({rows, kColumns + 9}).to(GetParam()), q = wide.narrow(1, 4, kColumns);   // columns of q|k|v
  const torch::Tensor d_out = torch::randn({rows, kColumns}).to(GetParam());
  torch::Tensor out = torch::zeros_like(d_out), d_wide = torch::zeros_like(wide);
  const torch::Tensor log_sums = MemoryKvForward(q, kHeads, kScale, Groups(), out);
  MemoryKvBackward(d_out, q, kHeads, kScale, Groups(), log_sums, d_wide.narrow(1, 4, kColumns));

  std::vector<torch::Tensor> inputs = {q.to(torch::kFloat).requires_grad_()}, blocks;
  for (const Use& use : uses_) blocks.push_back(use.block.to(torch::kFloat).requires_grad_());
  inputs.insert(inputs.end(), blocks.begin(), blocks.end());
  const torch::Tensor expected = Reference(inputs[0], blocks);
  const auto exact = torch::autograd::grad({expected}, inputs, {d_out.to(torch::kFloat)}, {}, false, /*allow_unused=*/true);
  ExpectClose(out, expected, Tolerance(GetParam()), "out");
  ExpectClose(d_wide.narrow(1, 4, kColumns), exact[0], Tolerance(GetParam()), "dq");
  for (int i = 0; i < 3; ++i) ExpectClose(uses_[i].gradient, exact[i + 1], Tolerance(GetParam()), "gradient of a block");
  EXPECT_EQ(uses_[3].gradient.abs().max().item<double>(), 0) << "a block without rows";
  EXPECT_EQ(out.narrow(0, 15, 2).abs().max().item<double>(), 0) << "rows of no group";
  EXPECT_EQ(d_wide.narrow(1, 0, 4).abs().max().item<double>(), 0) << "columns beside q";
}

TEST_P(MemoryKvTest, LargeScoresDoNotOverflow) {
  const torch::Tensor q = (torch::randn({17, kColumns}) * 300).to(GetParam());
  torch::Tensor out = torch::zeros_like(q);
  MemoryKvForward(q, kHeads, kScale, Groups(), out);
  EXPECT_TRUE(out.isfinite().all().item<bool>());
  std::vector<torch::Tensor> blocks;
  for (const Use& use : uses_) blocks.push_back(use.block.to(torch::kFloat));
  ExpectClose(out, Reference(q.to(torch::kFloat), blocks), GetParam() == torch::kFloat ? 1e-4 : 1e-2, "out");
}

TEST_P(MemoryKvTest, AnUntouchedBlockHasNoEffect) {
  for (const Use& use : uses_) use.block.narrow(0, kBegin + use.width * kColumns, use.width * kColumns).zero_();
  const torch::Tensor before = torch::randn({17, kColumns}).to(GetParam());
  torch::Tensor out = before.clone();
  MemoryKvForward(torch::randn({17, kColumns}).to(GetParam()), kHeads, kScale, Groups(), out);
  EXPECT_TRUE(torch::equal(out, before));
}

INSTANTIATE_TEST_SUITE_P(All, MemoryKvTest, testing::Values(torch::kFloat, torch::kBFloat16), DTypeText);

TEST(MemoryKvSmallTest, GradientsEqualFiniteDifferences) {
  torch::manual_seed(6);
  const MemoryRowRanges rows = {{0, 4}, {6, 9}};
  const torch::Tensor q = torch::randn({9, kColumns}), d_out = torch::randn({9, kColumns});
  torch::Tensor block = torch::randn({6 * kColumns}), gradient = torch::zeros_like(block), out = torch::zeros_like(q);
  const torch::Tensor log_sums = MemoryKvForward(q, kHeads, kScale, {MemoryKvSlice(block, gradient, 0, 3, kColumns, rows)}, out);
  MemoryKvBackward(d_out, q, kHeads, kScale, {MemoryKvSlice(block, gradient, 0, 3, kColumns, rows)}, log_sums, {});
  ExpectFiniteDifferences(block, gradient, {1, kColumns + 3, 3 * kColumns - 1, 3 * kColumns, block.size(0) - 1}, [&]() {
    torch::Tensor y = torch::zeros_like(q);
    MemoryKvForward(q, kHeads, kScale, {MemoryKvSlice(block, {}, 0, 3, kColumns, rows)}, y);
    return (y.to(torch::kDouble) * d_out).sum().item<double>();
  });
}

}  // namespace
}  // namespace membank
