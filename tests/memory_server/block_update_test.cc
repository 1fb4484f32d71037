#include "memory_server/block_update.h"

#include <gtest/gtest.h>

#include "common/bank/block_init.h"
#include "memory_server/optimizer.h"
#include "tests/memory_server/shard_fixture.h"

namespace membank {
namespace {

constexpr BlockId kId{1, 2};
const ApplyParameters kParameters{1.0f, 1e-2f, 0.1f};

// One block and the steps that a shard would apply to it.
class Block {
 public:
  explicit Block(DType dtype) : spec_(SmallSpec(dtype)) {
    payload_ = Buffer(spec_.BlockBytes(1));
    InitBlockPayload(spec_, kId, payload_.span());
  }
  void Step(const RunSettings& run, uint64_t step, float value) {
    const Gradient gradient = {DType::kF32, Buffer(spec_.BlockElements(1) * 4)};
    std::fill_n(reinterpret_cast<float*>(const_cast<uint8_t*>(gradient.bytes.data())), spec_.BlockElements(1), value);
    Buffer after(payload_.size());
    ApplyGradient(spec_, kId, run, kParameters, {step, version_, &payload_}, gradient, buffers_.get(), &state_, &after);
    payload_ = std::move(after);
    version_ = step;
  }
  std::vector<float> Values() const {
    std::vector<float> values(spec_.BlockElements(1));
    DecodePayload(payload_.span(), spec_.dtype, absl::MakeSpan(values));
    return values;
  }
  uint64_t BytesPerElement() const { return (payload_.size() + state_.bytes()) / spec_.BlockElements(1); }
  const OptimizerState& state() const { return state_; }
  const BankSpec& spec() const { return spec_; }

 private:
  const BankSpec spec_;
  const std::shared_ptr<BufferPool> buffers_ = BufferPool::Create(1 << 20);
  Buffer payload_;
  OptimizerState state_;
  uint64_t version_ = 0;
};

RunSettings RunWith(OptimizerKind kind, bool stochastic = false) {
  RunSettings run;
  run.optimizer = kind;
  run.stochastic_rounding = stochastic;
  return run;
}

TEST(BlockUpdate, BytesPerParameterAreWhatTheDocumentationSays) {
  struct Row {
    OptimizerKind kind;
    DType bank;
    bool stochastic;
    uint64_t bytes;
  };
  for (const Row& row : {Row{OptimizerKind::kAdamW, DType::kBF16, false, 14}, Row{OptimizerKind::kAdamW, DType::kBF16, true, 10},
                         Row{OptimizerKind::kAdamW, DType::kF32, false, 12}, Row{OptimizerKind::kSgd, DType::kBF16, false, 6},
                         Row{OptimizerKind::kSgd, DType::kBF16, true, 2}}) {
    Block block(row.bank);
    block.Step(RunWith(row.kind, row.stochastic), 1, 1e-2f);
    EXPECT_EQ(block.BytesPerElement(), row.bytes);
  }
  Block block(DType::kBF16);
  block.Step(RunWith(OptimizerKind::kRowWiseAdamW, true), 1, 1e-2f);
  EXPECT_EQ(block.state().weights.size(), 0u);
  EXPECT_EQ(block.state().m.size(), 4 * block.spec().BlockElements(1));
  EXPECT_EQ(block.state().v.size(), 4 * block.spec().BlockElements(1) / block.spec().hidden);
}

// With equal gradients in a row its second moment is every element's, so the two AdamWs agree up to a rounding.
TEST(BlockUpdate, RowWiseEqualsAdamWOnUniformRows) {
  Block row_wise(DType::kF32), adamw(DType::kF32);
  for (uint64_t step = 1; step <= 20; ++step) {
    row_wise.Step(RunWith(OptimizerKind::kRowWiseAdamW), step, 0.01f * step);
    adamw.Step(RunWith(OptimizerKind::kAdamW), step, 0.01f * step);
  }
  const std::vector<float> a = row_wise.Values(), b = adamw.Values();
  for (size_t i = 0; i < a.size(); ++i) EXPECT_NEAR(a[i], b[i], 1e-6);
}

TEST(BlockUpdate, DecayForMissedStepsEqualsTheDenseRun) {
  RunSettings missed = RunWith(OptimizerKind::kSgd), touched = RunWith(OptimizerKind::kSgd);
  missed.decay = DecayPolicy::kMissed;
  Block sparse(DType::kF32), dense(DType::kF32);
  sparse.Step(missed, 1, 1);
  sparse.Step(missed, 5, 1);
  for (uint64_t step = 1; step <= 5; ++step) dense.Step(touched, step, step == 1 || step == 5 ? 1 : 0);
  const std::vector<float> a = sparse.Values(), b = dense.Values();
  for (size_t i = 0; i < a.size(); ++i) EXPECT_NEAR(a[i], b[i], 1e-6);
}

// A bank may change its optimizer from run to run: weights carry over, moments of another kind start anew.
TEST(BlockUpdate, AnotherOptimizerStartsNewMoments) {
  Block block(DType::kBF16);
  block.Step(RunWith(OptimizerKind::kAdamW), 1, 1e-2f);
  block.Step(RunWith(OptimizerKind::kAdamW), 2, 1e-2f);
  EXPECT_EQ(block.state().adam_steps, 2u);
  block.Step(RunWith(OptimizerKind::kRowWiseAdamW, true), 3, 1e-2f);
  EXPECT_EQ(block.state().adam_steps, 1u);
  EXPECT_EQ(block.state().weights.size(), 0u);
  const std::vector<float> before = block.Values();
  block.Step(RunWith(OptimizerKind::kSgd), 4, 0);  // fp32 weights come back from the payload: decay is all that happens
  EXPECT_EQ(block.state().m.size() + block.state().v.size(), 0u);
  ASSERT_EQ(block.state().weights.size(), 4 * before.size());
  const std::vector<float> after = block.Values();
  for (size_t i = 0; i < before.size(); ++i) EXPECT_NEAR(after[i], before[i] * 0.999f, 1e-2 * std::abs(before[i]));
}

TEST(BlockUpdate, OnlySizesThatAStateCanHaveFit) {
  const BankSpec bf16 = SmallSpec(DType::kBF16), f32 = SmallSpec(DType::kF32);
  const uint64_t all = 4 * bf16.BlockElements(1), rows = all / bf16.hidden;
  EXPECT_TRUE(StateFits(bf16, kId, all, all, all));
  EXPECT_TRUE(StateFits(bf16, kId, 0, all, rows));
  EXPECT_TRUE(StateFits(bf16, kId, all, 0, 0));
  EXPECT_TRUE(StateFits(f32, kId, 0, all, rows));
  EXPECT_FALSE(StateFits(f32, kId, all, all, all)) << "an F32 bank's payload is its weights";
  EXPECT_FALSE(StateFits(bf16, kId, all - 4, all, all));
  EXPECT_FALSE(StateFits(bf16, kId, all, rows, rows));
  EXPECT_FALSE(StateFits(bf16, kId, all, 0, rows));
  EXPECT_FALSE(StateFits(bf16, kId, all, all, 0));
}

}  // namespace
}  // namespace membank
