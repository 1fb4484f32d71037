// A bank more than ten times the memory budget behaves, bit for bit, like the run that fits.
#include <gtest/gtest.h>

#include <random>
#include <thread>

#include "absl/synchronization/notification.h"
#include "tests/memory_server/shard_fixture.h"

namespace membank {
namespace {

uint64_t TouchedBytes(const BankSpec& spec) {
  uint64_t bytes = 0;
  for (uint32_t level = 1; level <= spec.depth(); ++level)
    bytes += (ClusterCount(spec.fan_out, level) + 1) *
             (spec.BlockBytes(level) + (spec.dtype == DType::kBF16 ? 12 : 8) * spec.BlockElements(level));
  return bytes;
}

struct Engine {
  const char* name;
  OpenBlockStore open;
  int operations;
};

class SpillTest : public ::testing::TestWithParam<Engine> {
 protected:
  // Random AdamW steps, reads ahead, checkpoints and restores on both; everything readable is equal after each.
  void Compare(DType dtype, uint32_t seed) {
    ShardFixture small(dtype, GetParam().open, 5), large(dtype, GetParam().open, 5);
    const uint64_t least = BlockTable::MinimumBudget(small.spec);
    small.options.memory_budget_bytes = least;
    ASSERT_OK(small.TryOpen());
    ASSERT_OK(large.TryOpen());
    std::mt19937 random(seed);
    const std::vector<BlockId> all = small.AllBlocks();
    uint64_t epoch = 0, step = 0, checkpoints = 0;
    const auto begin = [&] {
      ++epoch;
      for (ShardFixture* one : {&small, &large}) ASSERT_OK(one->Begin(epoch, 1, 0, OptimizerKind::kAdamW));
      step = small.shard->Status().head_step;
    };
    begin();
    for (int i = 0; i < GetParam().operations; ++i) {
      const uint32_t dice = random() % 100;
      if (dice < 70) {
        Contribution blocks;
        for (const BlockId id : all)
          if (random() % 3 == 0) blocks.emplace_back(id, static_cast<float>(random() % 1000) / 500 - 1);
        std::vector<BlockId> ahead(all.begin(), all.begin() + random() % all.size());
        ASSERT_OK(small.shard->Prefetch(ahead));
        ++step;
        for (ShardFixture* one : {&small, &large}) ASSERT_OK(one->Train(step, blocks, {0.5f, 1e-2f, 1e-2f}));
        ASSERT_LE(small.shard->Status().table.resident_bytes, least);
      } else if (dice < 85) {
        const std::string id = "c" + std::to_string(++checkpoints);
        for (ShardFixture* one : {&small, &large}) ASSERT_OK(one->Checkpoint(id));
      } else if (dice < 92 && checkpoints > 0) {
        const std::string id = small.shard->ListCheckpoints().front().id;
        for (ShardFixture* one : {&small, &large}) ASSERT_OK(one->shard->RestoreCheckpoint(id));
        begin();
      } else {
        for (ShardFixture* one : {&small, &large}) ASSERT_OK(one->TryOpen());
        begin();
      }
      ASSERT_EQ(small.AllPayloads(), large.AllPayloads()) << "operation " << i;
    }
    EXPECT_GT(small.shard->Status().table.disk_reads, 0u);
    EXPECT_GT(TouchedBytes(small.spec), 10 * least);
  }
};

TEST_P(SpillTest, EqualsTheRunThatFits) {
  for (const DType dtype : {DType::kF32, DType::kBF16}) {
    for (uint32_t seed = 1; seed <= 2; ++seed) {
      SCOPED_TRACE("seed " + std::to_string(seed));
      ASSERT_NO_FATAL_FAILURE(Compare(dtype, seed));
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Engines, SpillTest, ::testing::Values(Engine{"InMemory", InMemoryBlockStore::Open, 60}, Engine{"RocksDb", RocksDbStore::Open, 10}),
                         [](const auto& info) { return info.param.name; });

// A trainer that died between its snapshot and PrepareCheckpoint: its images hold the room that the next step waits for.
class OrphanTest : public ::testing::Test, protected ShardFixture {
 protected:
  OrphanTest() : ShardFixture(DType::kF32, InMemoryBlockStore::Open, 5) { options.memory_budget_bytes = BlockTable::MinimumBudget(spec); }

  void SetUp() override {
    ASSERT_OK(TryOpen());
    ASSERT_OK(Begin(1, 1, 0, OptimizerKind::kAdamW));
    ASSERT_OK(TrainAll(1));
    ASSERT_OK(Checkpoint("one"));
    ASSERT_OK(TrainAll(2));
    ASSERT_OK(shard->SnapshotCheckpoint("orphan", 2));
    stuck_ = std::thread([this] { stuck_status_ = TrainAll(3); done_.Notify(); });
    ASSERT_FALSE(done_.WaitForNotificationWithTimeout(absl::Milliseconds(300))) << "the step did not need the room: " << stuck_status_;
  }
  void TearDown() override { stuck_.join(); }

  absl::Status TrainAll(uint64_t step) {
    Contribution blocks;
    for (const BlockId id : AllBlocks()) blocks.emplace_back(id, 0.5f);
    return Train(step, blocks, {0.5f, 1e-2f, 1e-2f});
  }

  std::thread stuck_;
  absl::Status stuck_status_;
  absl::Notification done_;
};

TEST_F(OrphanTest, ARestoreFreesIt) {
  ASSERT_OK(shard->RestoreCheckpoint("one"));
  EXPECT_EQ(shard->Status().head_step, 1u);
  ASSERT_OK(Begin(2, 1, 0, OptimizerKind::kAdamW));
  ASSERT_OK(TrainAll(2));
}

TEST_F(OrphanTest, ANewRunFreesIt) {
  EXPECT_CODE(Begin(2, 1, 0, OptimizerKind::kAdamW), kFailedPrecondition, "is at step 3");
  ASSERT_OK(Begin(2, 1, 0, OptimizerKind::kAdamW));
  ASSERT_OK(TrainAll(4));
}

TEST_F(OrphanTest, AServerThatStopsFreesIt) { shard->Shutdown(); }

}  // namespace
}  // namespace membank
