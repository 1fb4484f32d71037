// A shard of durability class "step": what a crash leaves is the last acknowledged step, bit for bit, and training goes on from it.
#include <gtest/gtest.h>

#include "memory_server/shard.h"
#include "tests/memory_server/shard_fixture.h"

namespace membank {
namespace {

namespace fs = std::filesystem;

class StepDurabilityTest : public ::testing::TestWithParam<DType>, protected ShardFixture {
 protected:
  StepDurabilityTest() : ShardFixture(GetParam()) { options.durability = Durability::kStep; }

  absl::Status AdamW(uint64_t epoch) { return Begin(epoch, 1, 0, OptimizerKind::kAdamW); }
  absl::Status TrainAdamW(uint64_t step) {
    const auto a = static_cast<uint32_t>(step % 3), b = static_cast<uint32_t>(step % 9);
    return Train(step, {{{1, a}, 0.25f * static_cast<float>(step)}, {{2, b}, -0.5f}}, {0.7f, 1e-2f / static_cast<float>(step), 0.1f});
  }
  void OpenCrashImage() {
    options.data_directory = CrashImage();
    Open();
  }
};

TEST_P(StepDurabilityTest, ACrashLosesNoAcknowledgedStepAndTrainingGoesOnBitEqually) {
  Open();
  ASSERT_OK(AdamW(1));
  for (uint64_t step = 1; step <= 12; ++step) {
    ASSERT_OK(TrainAdamW(step));
    if (step == 4) ASSERT_OK(Checkpoint("four"));
  }
  const auto straight = AllPayloads();

  ShardFixture other(GetParam());
  options.data_directory = other.root + "/data";
  ASSERT_NO_FATAL_FAILURE(Open());
  uint64_t epoch = 0;
  for (uint64_t step = 1; step <= 12; ++step) {
    if (step % 3 == 1) ASSERT_OK(AdamW(++epoch));
    ASSERT_OK(TrainAdamW(step));
    if (step == 4) ASSERT_OK(Checkpoint("four"));
    if (step == 8) ASSERT_OK(shard->PrepareCheckpoint("eight", 8));  // never committed
    if (step % 3 != 0) continue;
    ASSERT_NO_FATAL_FAILURE(OpenCrashImage());
    ASSERT_EQ(shard->Status().head_step, step);
    ASSERT_EQ(shard->Status().run_epoch, epoch);
  }
  EXPECT_EQ(AllPayloads(), straight);
  shard.reset();
}

TEST_P(StepDurabilityTest, APreparedStepIsNoStepAndAnAppliedOneStays) {
  Open();
  ASSERT_OK(AdamW(1));
  ASSERT_OK(TrainAdamW(1));
  ASSERT_OK(Push(Id(2), 0, {{{1, 0}, 1}}));
  ASSERT_OK(shard->PrepareStep(Id(2), Soon()));
  OpenCrashImage();
  EXPECT_EQ(shard->Status().head_step, 1u);
}

TEST_P(StepDurabilityTest, AStepPreparedBeforeACheckpointIsAppliedAfterIt) {
  Open();
  ASSERT_OK(Begin(1));
  ASSERT_OK(Train(1, {{{1, 0}, 1}}));
  ASSERT_OK(Push(Id(2), 0, {{{1, 0}, 4}}));
  ASSERT_OK(shard->PrepareStep(Id(2), Soon()));
  ASSERT_OK(Checkpoint("one"));
  ASSERT_OK(PrepareAndApply(2));
  OpenCrashImage();
  EXPECT_EQ(shard->Status().head_step, 2u);
  EXPECT_EQ(shard->Read({1, 0})->version, 2u);
  EXPECT_EQ(Count({1, 0}), 5);
}

TEST_P(StepDurabilityTest, RewindGoesBackToAnyStepSinceTheCheckpoint) {
  Open();
  ASSERT_OK(AdamW(1));
  std::vector<std::vector<std::vector<uint8_t>>> payloads{AllPayloads()};
  for (uint64_t step = 1; step <= 6; ++step) {
    ASSERT_OK(TrainAdamW(step));
    payloads.push_back(AllPayloads());
    if (step == 2) ASSERT_OK(Checkpoint("two"));
  }
  EXPECT_CODE(shard->Rewind(7), kOutOfRange, "its head at step 6");
  EXPECT_CODE(shard->Rewind(1), kOutOfRange, "checkpoint is at step 2");
  for (uint64_t step : {6, 5, 3, 2}) {
    ASSERT_OK(shard->Rewind(step));
    EXPECT_EQ(AllPayloads(), payloads[step]) << step;
    EXPECT_EQ(shard->Status().head_step, step);
  }
  ASSERT_OK(AdamW(2));
  for (uint64_t step = 3; step <= 6; ++step) ASSERT_OK(TrainAdamW(step));
  EXPECT_EQ(AllPayloads(), payloads[6]);
  OpenCrashImage();
  EXPECT_EQ(AllPayloads(), payloads[6]);
}

TEST_P(StepDurabilityTest, ARestoreGivesUpTheLoggedSteps) {
  Open();
  ASSERT_OK(AdamW(1));
  for (uint64_t step = 1; step <= 2; ++step) ASSERT_OK(TrainAdamW(step));
  ASSERT_OK(Checkpoint("two"));
  const auto at_two = AllPayloads();
  for (uint64_t step = 3; step <= 4; ++step) ASSERT_OK(TrainAdamW(step));
  ASSERT_OK(Checkpoint("four"));
  ASSERT_OK(AdamW(2));
  ASSERT_OK(TrainAdamW(5));
  ASSERT_OK(shard->RestoreCheckpoint("two"));
  OpenCrashImage();
  EXPECT_EQ(shard->Status().head_step, 2u);
  EXPECT_EQ(AllPayloads(), at_two);
}

TEST_P(StepDurabilityTest, StepsStayWhenTheClassChangesAndTheLogGoesWithTheNextCheckpoint) {
  Open();
  ASSERT_OK(AdamW(1));
  for (uint64_t step = 1; step <= 3; ++step) ASSERT_OK(TrainAdamW(step));
  const auto at_three = AllPayloads();
  options.durability = Durability::kCheckpoint;
  OpenCrashImage();
  EXPECT_EQ(AllPayloads(), at_three);
  EXPECT_CODE(shard->Rewind(2), kFailedPrecondition, "--durability step");
  ASSERT_OK(Checkpoint("three"));
  EXPECT_TRUE(fs::is_empty(options.data_directory + "/steps"));
  OpenCrashImage();
  EXPECT_EQ(AllPayloads(), at_three);
}

INSTANTIATE_TEST_SUITE_P(DTypes, StepDurabilityTest, ::testing::Values(DType::kF32, DType::kBF16),
                         [](const auto& info) { return std::string(DTypeName(info.param)); });

}  // namespace
}  // namespace membank
