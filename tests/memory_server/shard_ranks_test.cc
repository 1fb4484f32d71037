#include <gtest/gtest.h>

#include <cmath>
#include <thread>

#include "tests/memory_server/shard_fixture.h"

namespace membank {
namespace {

class ShardRanksTest : public ::testing::Test, protected ShardFixture {
 protected:
  void SetUp() override { Open(); }
  RunMember Member(uint32_t rank, const std::string& id, uint64_t epoch = 0, const std::string& description = "") {
    return {rank, 2, id, epoch == 0 ? "" : "r", epoch, description};
  }
  absl::Status PushWithSums(uint64_t step, uint32_t rank, std::vector<double> sums) {
    auto push = shard->BeginPush(Id(step), rank, std::move(sums));
    return push.ok() ? (*push)->Finish().status() : push.status();
  }
};

TEST_F(ShardRanksTest, RanksWaitForRankZeroAndLearnTheRun) {
  EXPECT_CODE(shard->JoinRun(Member(1, "b"), Soon()), kDeadlineExceeded, "no run is active");
  absl::StatusOr<JoinedRun> joined;
  std::thread waiting([&] { joined = shard->JoinRun(Member(1, "b"), absl::Now() + absl::Seconds(20)); });
  ASSERT_OK(Begin(7, 2));
  EXPECT_CODE(shard->JoinRun(Member(1, "c"), Soon()), kDeadlineExceeded, "rank 0 of run r epoch 7 is still beginning it");
  ASSERT_OK(shard->JoinRun(Member(0, "a", 7, "how it runs"), Soon()));
  waiting.join();
  ASSERT_OK(joined);
  EXPECT_EQ(joined->run_id, "r");
  EXPECT_EQ(joined->epoch, 7u);
  EXPECT_EQ(joined->description, "how it runs");
}

// The second process of a rank waits for the next epoch; a repeated call of the first one is the same call.
TEST_F(ShardRanksTest, ARankJoinsAnEpochOnce) {
  ASSERT_OK(Begin(1, 2));
  ASSERT_OK(shard->JoinRun(Member(0, "a", 1), Soon()));
  ASSERT_OK(shard->JoinRun(Member(0, "a", 1), Soon()));
  EXPECT_CODE(shard->JoinRun(Member(0, "a2", 1), Soon()), kAborted, "is there already");
  ASSERT_OK(shard->JoinRun(Member(1, "b"), Soon()));
  ASSERT_OK(shard->JoinRun(Member(1, "b"), Soon()));
  EXPECT_CODE(shard->JoinRun(Member(1, "b2"), Soon()), kDeadlineExceeded, "rank 1 of run r epoch 1 is there already");
  ASSERT_OK(Begin(2, 2));
  EXPECT_CODE(shard->JoinRun(Member(0, "a", 1), Soon()), kAborted, "fenced");
  ASSERT_OK(shard->JoinRun(Member(0, "a2", 2), Soon()));
  const auto successor = shard->JoinRun(Member(1, "b2"), Soon());
  ASSERT_OK(successor);
  EXPECT_EQ(successor->epoch, 2u);
}

TEST_F(ShardRanksTest, WhoCannotJoinIsRefused) {
  ASSERT_OK(Begin(1, 2));
  EXPECT_CODE(shard->JoinRun({2, 2, "c"}, Soon()), kInvalidArgument, "rank 2 of 2");
  EXPECT_CODE(shard->JoinRun({1, 2, ""}, Soon()), kInvalidArgument, "member id");
  EXPECT_CODE(shard->JoinRun({0, 2, "a", "r", 1, std::string(70000, 'x')}, Soon()), kInvalidArgument, "70000 bytes");
  EXPECT_CODE(shard->JoinRun({0, 3, "a", "r", 1}, Soon()), kInvalidArgument, "begun with 2 ranks");
  ASSERT_OK(shard->JoinRun(Member(0, "a", 1), Soon()));
  EXPECT_CODE(shard->JoinRun({1, 3, "b"}, Soon()), kDeadlineExceeded, "has 2 ranks");
  std::thread stopper([&] {
    absl::SleepFor(absl::Milliseconds(10));
    shard->Shutdown();
  });
  EXPECT_CODE(shard->JoinRun({1, 3, "b"}, absl::Now() + absl::Seconds(20)), kUnavailable, "shutting down");
  stopper.join();
}

TEST_F(ShardRanksTest, SumsAreAddedInRankOrder) {
  ASSERT_OK(Begin(1, 3));
  ASSERT_OK(PushWithSums(1, 2, {-1e16, 4}));
  ASSERT_OK(PushWithSums(1, 0, {1e16, 1}));
  ASSERT_OK(PushWithSums(1, 1, {1}));
  EXPECT_CODE(shard->AwaitStep(Id(1), Soon()), kDeadlineExceeded, "waits for rank 0 to commit it");
  ASSERT_OK(PrepareAndApply(1));
  const auto sums = shard->AwaitStep(Id(1), Soon());
  ASSERT_OK(sums);
  EXPECT_EQ(*sums, (std::vector<double>{0, 5})) << "(1e16 + 1) - 1e16 is 0 in double; any other order gives 1";
  EXPECT_CODE(PushWithSums(2, 0, {1, NAN}), kInvalidArgument, "sum 1 of the push is nan");
  EXPECT_CODE(PushWithSums(2, 0, std::vector<double>(17)), kInvalidArgument, "allowed 0..16");
}

TEST_F(ShardRanksTest, EveryWaitingPartyNamesTheMissingRank) {
  ASSERT_OK(Begin(1, 3));
  ASSERT_OK(Push(Id(1), 1, {}));
  EXPECT_CODE(shard->PrepareStep(Id(1), Soon()), kDeadlineExceeded, "ranks 0, 2 (of 3)");
  EXPECT_CODE(shard->AwaitStep(Id(1), Soon()), kDeadlineExceeded, "ranks 0, 2 (of 3)");
  EXPECT_CODE(shard->WaitForStep(1, Soon()), kDeadlineExceeded, "ranks 0, 2 (of 3)");
}

TEST_F(ShardRanksTest, AZombieIsFencedWhileItWaitsAndWhenItPushes) {
  ASSERT_OK(Begin(1, 2));
  const StepId old = Id(1);
  ASSERT_OK(Push(old, 1, {{{1, 0}, 1}}));
  absl::Status waited;
  std::thread zombie([&] { waited = StatusOf(shard->AwaitStep(old, absl::Now() + absl::Seconds(20))); });
  absl::SleepFor(absl::Milliseconds(10));
  ASSERT_OK(Begin(2, 2));
  zombie.join();
  EXPECT_CODE(waited, kAborted, "fenced by epoch 2");
  EXPECT_CODE(Push(old, 0, {{{1, 0}, 1}}), kAborted, "fenced by epoch 2");
  EXPECT_EQ(Count({1, 0}), 0);
}

// The server keeps ranks within the staleness of the run, whatever they do.
TEST_F(ShardRanksTest, StalenessIsABound) {
  ASSERT_OK(Begin(1, 2, 3));
  for (uint64_t step = 1; step <= 4; ++step) ASSERT_OK(Push(Id(step), 1, {{{1, 0}, 1}}));
  EXPECT_CODE(Push(Id(5), 1, {}), kOutOfRange, "expected at most step 4");
  ASSERT_OK(Push(Id(1), 0, {}));
  ASSERT_OK(PrepareAndApply(1));
  ASSERT_OK(Push(Id(5), 1, {}));
  EXPECT_CODE(Push(Id(6), 1, {}), kOutOfRange, "the run's staleness is 3");
}

}  // namespace
}  // namespace membank
