#include "memory_server/shard.h"

#include <gtest/gtest.h>

#include <atomic>
#include <cmath>
#include <thread>

#include "memory_server/block_update.h"
#include "tests/memory_server/shard_fixture.h"

namespace membank {
namespace {

class ShardTest : public ::testing::Test, protected ShardFixture {
 protected:
  void SetUp() override { Open(); }
};

TEST_F(ShardTest, UntouchedBlocksAreGeneratedAndCostNoState) {
  for (BlockId id : AllBlocks()) {
    std::vector<uint8_t> expected(spec.BlockBytes(id.level));
    InitBlockPayload(spec, id, absl::MakeSpan(expected));
    const auto read = shard->Read(id);
    ASSERT_OK(read);
    EXPECT_EQ(read->version, 0u);
    EXPECT_EQ(Bytes(*read), expected);
    EXPECT_EQ(read->crc32c, Crc32c(expected.data(), expected.size()));
  }
  EXPECT_EQ(shard->Status().touched_blocks, 0u);
  const auto unchanged = shard->Read({1, 0}, 0);
  EXPECT_TRUE(unchanged->unchanged);
  EXPECT_EQ(unchanged->payload, nullptr);
}

TEST_F(ShardTest, WhatIsNotInRamIsSaidToBeElsewhere) {
  ASSERT_OK(Begin(1));
  ASSERT_OK(Train(1, {{{1, 0}, 1}}));
  const auto trained = shard->Read({1, 0}, -1, ReadFrom::kRam), untouched = shard->Read({2, 3}, -1, ReadFrom::kRam);
  ASSERT_OK(trained);
  EXPECT_FALSE(trained->elsewhere);
  EXPECT_EQ(trained->version, 1u);
  EXPECT_EQ(trained->payload, shard->Read({1, 0})->payload);
  EXPECT_TRUE(shard->Read({1, 0}, 1, ReadFrom::kRam)->unchanged);
  ASSERT_OK(untouched);
  EXPECT_TRUE(untouched->elsewhere);
  EXPECT_EQ(untouched->payload, nullptr);
  EXPECT_TRUE(shard->Read({2, 3}, 0, ReadFrom::kRam)->unchanged);
  EXPECT_CODE(shard->Read({3, 0}, -1, ReadFrom::kRam), kInvalidArgument, "allowed 1..2");
}

TEST_F(ShardTest, BlocksOutsideTheBankAreRefusedWithTheAllowedRanges) {
  EXPECT_CODE(shard->Read({0, 0}), kInvalidArgument, "level 0 is not in the bank, allowed 1..2");
  EXPECT_CODE(shard->Read({3, 0}), kInvalidArgument, "allowed 1..2");
  EXPECT_CODE(shard->Read({2, 10}), kInvalidArgument, "cluster 10 is not in level 2, allowed 0..8 and 9 for the generic block");
}

TEST(ShardSlots, BlocksOfAnotherServerAreRefusedWithTheEpoch) {
  ShardFixture fixture;
  auto map = SlotMap::Striped({{"m0", "a:1"}, {"m1", "a:2"}}, 77);
  auto shard = Shard::Open(fixture.spec, *map, fixture.options);
  ASSERT_OK(shard);
  EXPECT_TRUE((*shard)->Read({2, 4}).ok());
  const absl::Status status = (*shard)->Read({2, 5}).status();
  EXPECT_CODE(status, kFailedPrecondition, "slot map epoch 77");
  ASSERT_TRUE(status.GetPayload(kSlotMapEpochPayload).has_value());
  EXPECT_EQ(*status.GetPayload(kSlotMapEpochPayload), "77");
  ShardFixture other;
  other.options.server_id = "m9";  // waits for slots to be moved to it
  const auto joining = Shard::Open(fixture.spec, *map, other.options);
  ASSERT_OK(joining);
  EXPECT_CODE((*joining)->Read({2, 4}).status(), kFailedPrecondition, "belongs to server \"m0\", not to \"m9\"");
}

TEST_F(ShardTest, AStepChangesItsBlocksAndTheirVersionsOnly) {
  ASSERT_OK(Begin(1));
  ASSERT_OK(Train(1, {{{1, 0}, 2}, {{2, 1}, 3}}));
  ASSERT_OK(Train(2, {{{1, 0}, 5}}));
  EXPECT_EQ(Count({1, 0}), 7);
  EXPECT_EQ(Count({2, 1}), 3);
  EXPECT_EQ(Count({2, 2}), 0);
  EXPECT_EQ(shard->Read({1, 0})->version, 2u);
  EXPECT_EQ(shard->Read({2, 1})->version, 1u);
  EXPECT_TRUE(shard->Read({2, 1}, 1)->unchanged);
  EXPECT_FALSE(shard->Read({2, 1}, 0)->unchanged);
  const ShardStatus status = shard->Status();
  EXPECT_EQ(status.head_step, 2u);
  EXPECT_EQ(status.run_id, "r");
  EXPECT_EQ(status.run_epoch, 1u);
  EXPECT_EQ(status.touched_blocks, 2u);
  EXPECT_GE(status.resident_bytes, spec.BlockBytes(1) + spec.BlockBytes(2));
}

TEST_F(ShardTest, BorrowedPayloadsNeverChange) {
  ASSERT_OK(Begin(1));
  ASSERT_OK(Train(1, {{{1, 0}, 1}}));
  const BlockRead held = *shard->Read({1, 0});
  const std::vector<uint8_t> before = Bytes(held);
  for (uint64_t step = 2; step < 10; ++step) ASSERT_OK(Train(step, {{{1, 0}, 1}, {{1, 1}, 1}}));
  EXPECT_EQ(Bytes(held), before);
  EXPECT_EQ(Count({1, 0}), 9);
}

TEST_F(ShardTest, PushesCountExactlyOnce) {
  ASSERT_OK(Begin(1, 2));
  EXPECT_EQ(*Push(Id(1), 0, {{{1, 0}, 1}}), PushOutcome::kAccepted);
  EXPECT_EQ(*Push(Id(1), 0, {{{1, 0}, 1}}), PushOutcome::kDuplicate);
  auto slow = shard->BeginPush(Id(1), 1), fast = shard->BeginPush(Id(1), 1);  // the same push on two streams
  ASSERT_OK((*slow)->AddBlock({1, 0}, {DType::kF32, GradientBytes({1, 0}, 10)}));
  ASSERT_OK((*fast)->AddBlock({1, 0}, {DType::kF32, GradientBytes({1, 0}, 10)}));
  EXPECT_EQ(*(*fast)->Finish(), PushOutcome::kAccepted);
  EXPECT_EQ(*(*slow)->Finish(), PushOutcome::kDuplicate);
  ASSERT_OK(PrepareAndApply(1));
  EXPECT_EQ(*Push(Id(1), 1, {{{1, 0}, 10}}), PushOutcome::kDuplicate);
  EXPECT_EQ(*Push(Id(0), 1, {}), PushOutcome::kStale);
  EXPECT_EQ(Count({1, 0}), 11);
}

TEST_F(ShardTest, APushThatBreaksOffCountsNothing) {
  ASSERT_OK(Begin(1));
  {
    auto broken = shard->BeginPush(Id(1), 0);
    ASSERT_OK((*broken)->AddBlock({1, 0}, {DType::kF32, GradientBytes({1, 0}, 4)}));
  }
  ASSERT_OK(Train(1, {{{1, 1}, 1}}));
  EXPECT_EQ(Count({1, 0}), 0);
  EXPECT_EQ(Count({1, 1}), 1);
}

TEST_F(ShardTest, StepsOutOfOrderAndForeignRunsAreRefused) {
  EXPECT_CODE(Push({"r", 1, 1}, 0, {}), kFailedPrecondition, "no run is active");
  ASSERT_OK(Begin(3, 2));
  EXPECT_CODE(Push(Id(2), 0, {}), kOutOfRange, "expected step 1");
  EXPECT_CODE(Push(Id(1), 2, {}), kInvalidArgument, "rank 2 is not in run r, allowed 0..1");
  EXPECT_CODE(Push({"r", 2, 1}, 0, {}), kAborted, "fenced");
  EXPECT_CODE(Push({"r", 4, 1}, 0, {}), kFailedPrecondition, "active run is r epoch 3");
  EXPECT_CODE(Push({"other", 1, 1}, 0, {}), kFailedPrecondition, "active run is r epoch 3");
  ASSERT_OK(Push(Id(1), 0, {}));
  EXPECT_CODE(Push(Id(2), 0, {}), kOutOfRange, "staleness is 0");
}

TEST_F(ShardTest, StalenessLetsARankRunAheadAndStepsStayInOrder) {
  ASSERT_OK(Begin(1, 1, 2));
  for (uint64_t step = 1; step <= 3; ++step) ASSERT_OK(Push(Id(step), 0, {{{1, 0}, static_cast<float>(step)}}));
  EXPECT_CODE(Push(Id(4), 0, {}), kOutOfRange, "expected at most step 3");
  EXPECT_CODE(shard->PrepareStep(Id(2), Soon()), kDeadlineExceeded, "waits for step 1 to be applied");
  for (uint64_t step = 1; step <= 3; ++step) ASSERT_OK(PrepareAndApply(step));
  EXPECT_EQ(Count({1, 0}), 6);
}

TEST_F(ShardTest, BadGradientsRefuseTheWholePush) {
  ASSERT_OK(Begin(1));
  for (float bad : {std::nanf(""), INFINITY, -INFINITY}) {
    auto push = shard->BeginPush(Id(1), 0);
    ASSERT_OK((*push)->AddBlock({1, 0}, {DType::kF32, GradientBytes({1, 0}, 1)}));
    EXPECT_CODE((*push)->AddBlock({1, 1}, {DType::kF32, GradientBytes({1, 1}, bad)}), kInvalidArgument, "must be finite");
    EXPECT_CODE((*push)->AddBlock({1, 2}, {DType::kF32, GradientBytes({1, 2}, 1)}), kInvalidArgument, "block 1/1 pushed by rank 0");
    EXPECT_CODE((*push)->Finish(), kInvalidArgument, "must be finite");
  }
  auto push = *shard->BeginPush(Id(1), 0);
  EXPECT_CODE(push->CheckBlock({1, 0}, DType::kF32, 12), kInvalidArgument, "has 12 bytes, must have 480");
  EXPECT_CODE(push->CheckBlock({1, 0}, DType::kF16, 240), kInvalidArgument, "allowed F32, BF16, I8_ROWS");
  EXPECT_CODE(push->CheckBlock({1, 9}, DType::kF32, 480), kInvalidArgument, "allowed 0..2 and 3");
  ASSERT_OK(push->AddBlock({1, 0}, {DType::kF32, GradientBytes({1, 0}, 1)}));
  EXPECT_CODE(push->AddBlock({1, 0}, {DType::kF32, GradientBytes({1, 0}, 1)}), kInvalidArgument, "twice");
  EXPECT_FALSE(push->Finish().ok());
  ASSERT_OK(Train(1, {{{1, 0}, 1}}));  // nothing of the refused pushes was kept
  EXPECT_EQ(Count({1, 0}), 1);
  EXPECT_EQ(Count({1, 1}), 0);
}

TEST_F(ShardTest, PrepareNamesMissingRanksAndMayBeRepeated) {
  ASSERT_OK(Begin(1, 3));
  ASSERT_OK(Push(Id(1), 1, {{{1, 0}, 2}, {{2, 0}, 1}}));
  EXPECT_CODE(shard->PrepareStep(Id(1), Soon()), kDeadlineExceeded, "pushes of ranks 0, 2 (of 3)");
  ASSERT_OK(Push(Id(1), 0, {{{1, 0}, 1}}));
  EXPECT_CODE(shard->ApplyStep(Id(1), {}), kFailedPrecondition, "was not prepared");
  ASSERT_OK(Push(Id(1), 2, {}));
  const double expected = 9.0 * spec.BlockElements(1) + spec.BlockElements(2);
  EXPECT_EQ(*shard->PrepareStep(Id(1), Soon()), expected);
  EXPECT_EQ(*shard->PrepareStep(Id(1), Soon()), expected);
  EXPECT_EQ(*shard->ApplyStep(Id(1), {1, 1, 0}), 1u);
  EXPECT_EQ(*shard->ApplyStep(Id(1), {1, 1, 0}), 1u) << "a step applied before changes nothing";
  EXPECT_EQ(*shard->PrepareStep(Id(1), Soon()), expected) << "its reply may have been lost";
  EXPECT_EQ(Count({1, 0}), 3);
  EXPECT_CODE(shard->ApplyStep(Id(2), {NAN, 1, 0}), kInvalidArgument, "scale is nan");
  EXPECT_CODE(shard->ApplyStep(Id(2), {1, -1, 0}), kInvalidArgument, "learning rate is -1");
}

// Promise P8: what is announced counts before memory is allocated for it, so that no number of open pushes exceeds the budget.
TEST_F(ShardTest, OpenPushesShareTheBudget) {
  const uint64_t bytes = spec.BlockElements(1) * 4;
  options.push_budget_bytes = 2 * bytes;
  Open();
  ASSERT_OK(Begin(1, 3));
  auto first = *shard->BeginPush(Id(1), 0), second = *shard->BeginPush(Id(1), 1);
  auto third = *shard->BeginPush(Id(1), 2);
  ASSERT_OK(first->CheckBlock({1, 0}, DType::kF32, bytes));
  ASSERT_OK(third->CheckBlock({1, 0}, DType::kF32, bytes));
  EXPECT_CODE(second->CheckBlock({1, 0}, DType::kF32, bytes), kResourceExhausted, "its budget of 960; push again later");
  third.reset();  // its stream broke off in the middle of the block
  ASSERT_OK(second->CheckBlock({1, 0}, DType::kF32, bytes));
  ASSERT_OK(first->AddBlock({1, 0}, {DType::kF32, GradientBytes({1, 0}, 1)}));
  EXPECT_CODE(first->CheckBlock({1, 1}, DType::kF32, bytes), kResourceExhausted, "960 bytes of gradients are held");
}

TEST_F(ShardTest, PrepareWaitsForTheLastRank) {
  ASSERT_OK(Begin(1, 2));
  ASSERT_OK(Push(Id(1), 1, {{{1, 0}, 1}}));
  std::thread late([&] {
    absl::SleepFor(absl::Milliseconds(20));
    EXPECT_TRUE(Push(Id(1), 0, {{{1, 0}, 1}}).ok());
  });
  EXPECT_EQ(*shard->PrepareStep(Id(1), absl::Now() + absl::Seconds(20)), 4.0 * spec.BlockElements(1));
  late.join();
}

TEST_F(ShardTest, ANewEpochFencesTheOldOneAndDropsItsPushes) {
  ASSERT_OK(Begin(1, 2));
  ASSERT_OK(Push(Id(1), 0, {{{1, 0}, 100}}));
  auto open_push = shard->BeginPush(Id(1), 1);
  ASSERT_OK((*open_push)->AddBlock({1, 0}, {DType::kF32, GradientBytes({1, 0}, 100)}));
  std::thread waiting([&] { EXPECT_CODE(shard->PrepareStep({"r", 1, 1}, absl::Now() + absl::Seconds(20)), kAborted, "fenced"); });
  absl::SleepFor(absl::Milliseconds(10));
  ASSERT_OK(Begin(2, 1));
  waiting.join();
  EXPECT_CODE((*open_push)->Finish(), kAborted, "fenced");
  EXPECT_CODE(shard->ApplyStep({"r", 1, 1}, {}), kAborted, "fenced");
  ASSERT_OK(Train(1, {{{1, 0}, 1}}));
  EXPECT_EQ(Count({1, 0}), 1);
}

TEST_F(ShardTest, BeginRunChecksItsSettings) {
  ASSERT_OK(Begin(2));
  EXPECT_EQ(*shard->BeginRun(run), 0u) << "the same again is fine";
  RunSettings other = run;
  other.world_size = 2;
  EXPECT_CODE(shard->BeginRun(other), kAborted, "epoch 2 is fenced");
  other.epoch = 3;
  other.first_step = 5;
  EXPECT_CODE(shard->BeginRun(other), kFailedPrecondition, "head of server \"m0\" is at step 0");
  for (auto change : std::vector<void (*)(RunSettings&)>{[](RunSettings& s) { s.run_id = ""; }, [](RunSettings& s) { s.epoch = 0; },
                                                         [](RunSettings& s) { s.world_size = 0; }, [](RunSettings& s) { s.world_size = 5000; },
                                                         [](RunSettings& s) { s.staleness = 2000; }, [](RunSettings& s) { s.beta1 = 1; },
                                                         [](RunSettings& s) { s.beta2 = NAN; }, [](RunSettings& s) { s.epsilon = 0; }}) {
    RunSettings bad = run;
    bad.epoch = 9;
    change(bad);
    EXPECT_CODE(shard->BeginRun(bad), kInvalidArgument, "");
  }
}

TEST_F(ShardTest, WaitForStepWaitsTimesOutAndIsWokenByShutdown) {
  EXPECT_TRUE(shard->WaitForStep(0, Soon()).ok());
  EXPECT_CODE(shard->WaitForStep(1, Soon()), kDeadlineExceeded, "step 1 was not applied within the deadline; the head of server \"m0\" is at step 0");
  ASSERT_OK(Begin(1));
  std::thread waiting([&] { EXPECT_TRUE(shard->WaitForStep(1, absl::Now() + absl::Seconds(20)).ok()); });
  ASSERT_OK(Train(1, {}));
  waiting.join();
  std::thread stopped([&] { EXPECT_CODE(shard->WaitForStep(9, absl::Now() + absl::Seconds(20)), kUnavailable, "shutting down"); });
  absl::SleepFor(absl::Milliseconds(10));
  shard->Shutdown();
  stopped.join();
  EXPECT_CODE(Push(Id(2), 0, {}), kUnavailable, "shutting down");
  EXPECT_TRUE(shard->Read({1, 0}).ok());
}

TEST(ShardOrder, TheSumDoesNotDependOnTheOrderOfArrival) {
  std::vector<std::vector<std::vector<uint8_t>>> results;
  for (const std::vector<uint32_t>& order : {std::vector<uint32_t>{0, 1, 2, 3}, {3, 1, 0, 2}, {2, 3, 1, 0}}) {
    ShardFixture fixture(DType::kBF16);
    fixture.Open();
    ASSERT_OK(fixture.Begin(1, 4, 0, OptimizerKind::kAdamW));
    for (uint32_t rank : order) {
      const float value = std::pow(10.0f, static_cast<float>(rank)) / 3;
      ASSERT_OK(fixture.Push(fixture.Id(1), rank, {{{1, 0}, value}, {{2, rank}, value}}));
    }
    ASSERT_OK(fixture.PrepareAndApply(1, {0.3f, 1e-2f, 0.1f}));
    results.push_back(fixture.AllPayloads());
  }
  EXPECT_EQ(results[0], results[1]);
  EXPECT_EQ(results[0], results[2]);
}

// Each block has its own count of steps: the shard equals the update of blocks called by hand, with every kind of weights and moments.
TEST(ShardOptimizer, EqualsTheUpdateCalledByHand) {
  for (const auto& [dtype, kind, stochastic] : {std::tuple(DType::kF32, OptimizerKind::kAdamW, false), {DType::kBF16, OptimizerKind::kAdamW, false},
                                                {DType::kBF16, OptimizerKind::kRowWiseAdamW, false}, {DType::kBF16, OptimizerKind::kAdamW, true},
                                                {DType::kBF16, OptimizerKind::kRowWiseAdamW, true}}) {
    ShardFixture fixture(dtype);
    fixture.Open();
    fixture.run = {"r", 1, 1, 0, 1, kind};
    fixture.run.stochastic_rounding = stochastic;
    fixture.run.decay = DecayPolicy::kMissed;
    ASSERT_OK(fixture.shard->BeginRun(fixture.run));
    const BlockId often{1, 1}, seldom{1, 2};
    std::map<BlockId, Buffer> payload;
    const std::shared_ptr<BufferPool> buffers = BufferPool::Create(0);
    std::map<BlockId, OptimizerState> state;
    std::map<BlockId, uint64_t> version;
    for (BlockId id : {often, seldom}) {
      payload[id] = Buffer(fixture.spec.BlockBytes(1));
      InitBlockPayload(fixture.spec, id, payload[id].span());
    }
    for (uint64_t step = 1; step <= 5; ++step) {
      Contribution blocks = {{often, 0.1f * step}};
      if (step % 3 == 0) blocks.push_back({seldom, -0.2f});
      const ApplyParameters parameters{0.9f, 1e-2f, 0.01f};
      ASSERT_OK(fixture.Train(step, blocks, parameters));
      for (const auto& [id, value] : blocks) {
        Buffer next(payload[id].size());
        ApplyGradient(fixture.spec, id, fixture.run, parameters, {step, std::exchange(version[id], step), &payload[id]},
                      {DType::kF32, fixture.GradientBytes(id, value)}, buffers.get(), &state[id], &next);
        payload[id] = std::move(next);
      }
    }
    for (BlockId id : {often, seldom}) {
      const std::vector<uint8_t> expected(payload[id].data(), payload[id].data() + payload[id].size());
      EXPECT_EQ(fixture.Bytes(*fixture.shard->Read(id)), expected) << ToString(id);
    }
    EXPECT_EQ(state[seldom].adam_steps, 1u);
  }
}

TEST_F(ShardTest, BelowTheDiskWatermarkWritesStopAndReadsGoOn) {
  ASSERT_OK(Begin(1));
  ASSERT_OK(Train(1, {{{1, 0}, 1}}));
  options.min_free_bytes = uint64_t{1} << 60;
  ASSERT_OK(TryOpen());
  ASSERT_OK(Begin(2));
  EXPECT_CODE(Push(Id(1), 0, {}), kResourceExhausted, "must stay free");
  EXPECT_CODE(shard->PrepareCheckpoint("c", 0), kResourceExhausted, "must stay free");
  EXPECT_TRUE(shard->Read({1, 0}).ok());
}

TEST_F(ShardTest, GradientsHeldAreBounded) {
  options.push_budget_bytes = 1000;  // two blocks of level 1 in fp32 are 960
  ASSERT_OK(TryOpen());
  ASSERT_OK(Begin(1, 2));
  ASSERT_OK(Push(Id(1), 0, {{{1, 0}, 1}}));
  EXPECT_CODE(Push(Id(1), 1, {{{1, 0}, 1}, {{1, 1}, 1}}), kResourceExhausted, "its budget of 1000");
  ASSERT_OK(Push(Id(1), 1, {{{1, 0}, 1}}));
  ASSERT_OK(PrepareAndApply(1));
  ASSERT_OK(Push(Id(2), 0, {{{1, 0}, 1}, {{1, 1}, 1}}));  // what was applied is free again
}

TEST_F(ShardTest, ReadersSeeWholeBlocksWhileStepsRun) {
  ASSERT_OK(Begin(1));
  std::atomic<bool> stop = false;
  std::vector<std::thread> readers;
  for (int i = 0; i < 2; ++i) {
    readers.emplace_back([&] {
      uint64_t last = 0;
      while (!stop) {
        const auto read = shard->Read({1, 0});
        ASSERT_TRUE(read.ok());
        ASSERT_GE(read->version, last);
        last = read->version;
        ASSERT_EQ(Values(*read).back(), -static_cast<float>(read->version));
      }
    });
  }
  for (uint64_t step = 1; step <= 300; ++step) ASSERT_OK(Train(step, {{{1, 0}, 1}, {{2, 0}, 1}}));
  stop = true;
  for (std::thread& reader : readers) reader.join();
}

}  // namespace
}  // namespace membank
