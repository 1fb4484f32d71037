#include "model_worker/train/options.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"

namespace membank {
namespace {

using ::testing::HasSubstr;

TrainOptions Good() {
  TrainOptions options;
  options.anchor_path = std::string("anchor");
  options.corpus_path = std::string("corpus");
  options.output = std::string("output");
  options.steps = 10;
  return options;
}

void ExpectInvalid(const TrainOptions& options, const std::string& text) {
  const absl::Status status = options.Validate();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << text;
  EXPECT_THAT(std::string(status.message()), HasSubstr(text));
}

TEST(TrainOptions, EveryRangeIsChecked) {
  EXPECT_TRUE(Good().Validate().ok());
  TrainOptions o = Good();
  o.batch_sequences = 0;
  ExpectInvalid(o, "--batch-sequences is 0");
  o = Good();
  o.micro_batch_sequences = 17;
  ExpectInvalid(o, "--micro-batch-sequences is 17; allowed: 0 to 16");
  o = Good();
  o.min_learning_rate = 1;
  ExpectInvalid(o, "--min-learning-rate is 1");
  o = Good();
  o.warmup_steps = 10;
  ExpectInvalid(o, "--warmup-steps is 10; allowed: 0 to 9");
  o = Good();
  o.dtype = DType::kF16;
  ExpectInvalid(o, "--dtype is F16; allowed: bf16, fp32");
  o = Good();
  o.staleness = 17;
  ExpectInvalid(o, "--staleness is 17");
  o = Good();
  o.keep_checkpoints = 0;
  ExpectInvalid(o, "--keep-checkpoints is 0");
}

TEST(TrainOptions, ContradictionsAreNamed) {
  TrainOptions o = Good();
  o.generic_control = true;
  o.mode = TrainMode::kCotrain;
  ExpectInvalid(o, "--generic-control needs --mode frozen");
  o.mode = TrainMode::kFrozen;
  o.generic_probability = 0.1;
  ExpectInvalid(o, "leave one out");
  o = Good();
  o.anchor_learning_rate = 0.1;
  ExpectInvalid(o, "--anchor-learning-rate needs --mode cotrain");
  o = Good();
  o.mode = TrainMode::kAnchor;
  EXPECT_TRUE(o.Validate().ok());
  o.anchor_learning_rate = 0.1;
  ExpectInvalid(o, "--learning-rate is the anchor's");
  o.anchor_learning_rate = -1;
  o.staleness = 1;
  ExpectInvalid(o, "--mode anchor has no bank");
  o = Good();
  o.anchor_weight_decay = 0.1;
  ExpectInvalid(o, "need --mode cotrain or anchor");
  o = Good();
  o.cooldown_steps = 2;
  ExpectInvalid(o, "--cooldown-steps 2 needs --schedule wsd; it is cosine");
  o.schedule = Schedule::kWsd;
  o.warmup_steps = 9;
  ExpectInvalid(o, "--cooldown-steps is 2; allowed: 0 to 1");
}

TEST(TrainOptions, EpochsBecomeWholeSteps) {
  TrainOptions o = Good();
  EXPECT_TRUE(o.ResolveSteps(100).ok());
  EXPECT_EQ(o.steps, 10u);
  o.epochs = 1;
  EXPECT_EQ(o.ResolveSteps(100).code(), absl::StatusCode::kInvalidArgument);
  o.steps = 0;
  EXPECT_TRUE(o.ResolveSteps(100).ok());
  EXPECT_EQ(o.steps, 7u);  // 100 / 16, rounded up
  o.steps = 0;
  EXPECT_EQ(o.ResolveSteps(100).code(), absl::StatusCode::kInvalidArgument);
}

TEST(TrainOptions, GenericProbabilityIsThePapersByDefault) {
  TrainOptions o = Good();
  EXPECT_DOUBLE_EQ(o.EffectiveGenericProbability(16), 1.0 / 17);
  o.generic_control = true;
  EXPECT_EQ(o.EffectiveGenericProbability(16), 0);
}

TEST(CompareRuns, NamesEveryDifference) {
  const RunFacts facts{"a", "c", "t", "b"};
  TrainOptions one = Good(), two = Good();
  const nlohmann::json recorded = DescribeRun(one, facts, 16);
  two.output = std::string("elsewhere");      // not part of the numbers
  two.log_every = 7;
  EXPECT_TRUE(CompareRuns(recorded, DescribeRun(two, facts, 16), "dir").ok());
  two.seed = 9;
  const absl::Status status = CompareRuns(recorded, DescribeRun(two, {"a", "other", "t", "b"}, 16), "dir");
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(status.message()), HasSubstr("seed was 0, is now 9"));
  EXPECT_THAT(std::string(status.message()), HasSubstr("corpus was \"c\", is now \"other\""));
}

TEST(LearningRate, WarmsUpLinearlyThenFollowsTheCosineToItsFloor) {
  EXPECT_DOUBLE_EQ(LearningRateAt(1, 100, 10, 1e-3, 1e-4), 1e-4);
  EXPECT_DOUBLE_EQ(LearningRateAt(10, 100, 10, 1e-3, 1e-4), 1e-3);
  EXPECT_DOUBLE_EQ(LearningRateAt(11, 100, 10, 1e-3, 1e-4), 1e-3);
  EXPECT_DOUBLE_EQ(LearningRateAt(100, 100, 10, 1e-3, 1e-4), 1e-4);
  EXPECT_DOUBLE_EQ(LearningRateAt(1, 1, 0, 1e-3, 1e-4), 1e-3);
  for (int step = 12; step <= 100; ++step) EXPECT_LT(LearningRateAt(step, 100, 10, 1e-3, 1e-4), LearningRateAt(step - 1, 100, 10, 1e-3, 1e-4));
}

TEST(LearningRate, WsdIsConstantThenLinearToItsFloor) {
  TrainOptions o = Good();
  o.schedule = Schedule::kWsd;
  o.steps = 100;
  o.warmup_steps = 10;
  o.learning_rate = 1e-3;
  o.min_learning_rate = 1e-4;
  EXPECT_EQ(o.EffectiveCooldownSteps(), 20u);
  EXPECT_DOUBLE_EQ(o.LearningRateOf(5), 5e-4);
  EXPECT_DOUBLE_EQ(o.LearningRateOf(11), 1e-3);
  EXPECT_DOUBLE_EQ(o.LearningRateOf(80), 1e-3);
  EXPECT_DOUBLE_EQ(o.LearningRateOf(90), 5.5e-4);
  EXPECT_DOUBLE_EQ(o.LearningRateOf(100), 1e-4);
  o.steps = 11;  // as short as it can be
  EXPECT_DOUBLE_EQ(o.LearningRateOf(11), 1e-4);
}

}  // namespace
}  // namespace membank
