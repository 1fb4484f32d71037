// The shard against a trivial model under random operations (leveldb db/db_test.cc): integer gradients and SGD with rate 1, so that a block's
// value is the count of what was applied to it. Every failure names the seed.
#include <gtest/gtest.h>

#include <map>
#include <random>

#include "memory_server/shard.h"
#include "tests/memory_server/shard_fixture.h"

namespace membank {
namespace {

struct ModelHead {
  uint64_t step = 0;
  std::map<BlockId, std::pair<float, uint64_t>> blocks;  // count, version
};

class RandomRun : public ShardFixture {
 public:
  RandomRun(uint32_t seed, OpenBlockStore engine, Durability durability = Durability::kCheckpoint)
      : ShardFixture(DType::kF32, std::move(engine)), random_(seed) {
    options.durability = durability;
  }

  void Run(int operations) {
    ASSERT_NO_FATAL_FAILURE(Open());
    ASSERT_NO_FATAL_FAILURE(NewEpoch());
    for (int i = 0; i < operations; ++i) {
      ASSERT_NO_FATAL_FAILURE(Operation(Pick(100))) << "operation " << i;
      if (i % 10 != 0) continue;
      ASSERT_NO_FATAL_FAILURE(Compare()) << "operation " << i;
    }
    ASSERT_NO_FATAL_FAILURE(Compare());
  }

 private:
  uint32_t Pick(uint32_t n) { return random_() % n; }

  void Operation(uint32_t dice) {
    if (dice < 50) PushSomething();
    else if (dice < 58) PushNonsense();
    else if (dice < 80) PrepareAndMaybeApply();
    else if (dice < 88) TakeCheckpoint();
    else if (dice < 92) RestoreSomething();
    else if (dice < 96) CrashAndReopen();
    else NewEpoch();
  }

  void NewEpoch() {
    ranks_ = 1 + Pick(3);
    staleness_ = Pick(3);
    ASSERT_OK(Begin(++epoch_, ranks_, staleness_));
    pending_.clear();
    next_.assign(ranks_, head_.step + 1);
  }

  // The next push of a rank: whole, broken off, or repeated.
  void PushSomething() {
    const uint32_t rank = Pick(ranks_);
    const bool repeat = next_[rank] > run.first_step && Pick(4) == 0;
    const uint64_t step = repeat ? next_[rank] - 1 : next_[rank];
    std::map<BlockId, float> blocks;
    for (uint32_t i = Pick(4); i > 0; --i) blocks[RandomBlock()] = static_cast<float>(1 + Pick(9));
    auto push = shard->BeginPush(Id(step), rank);
    if (step > head_.step + 1 + staleness_) {
      ASSERT_EQ(push.status().code(), absl::StatusCode::kOutOfRange);
      return;
    }
    ASSERT_OK(push);
    for (const auto& [id, value] : blocks) {
      const DType dtype = Pick(2) == 0 ? DType::kF32 : DType::kBF16;  // small integers are exact in both
      ASSERT_OK((*push)->AddBlock(id, {dtype, GradientBytes(id, value, dtype)}));
    }
    if (Pick(8) == 0) return;  // the stream breaks: nothing counts
    ASSERT_EQ(*(*push)->Finish(), repeat ? PushOutcome::kDuplicate : PushOutcome::kAccepted);
    if (repeat) return;
    ++next_[rank];
    for (const auto& [id, value] : blocks) pending_[step][id] += value;
  }

  void PushNonsense() {
    const uint32_t rank = Pick(ranks_);
    switch (Pick(3)) {
      case 0:
        ASSERT_EQ(Push({"r", epoch_ - 1, next_[rank]}, rank, {{{1, 0}, 5}}).status().code(), absl::StatusCode::kAborted);
        break;
      case 1:
        ASSERT_EQ(Push(Id(next_[rank] + 1), rank, {{{1, 0}, 5}}).status().code(), absl::StatusCode::kOutOfRange);
        break;
      case 2:
        ASSERT_FALSE(Push(Id(next_[rank]), rank, {{{1, 0}, 5}, {{1, 1}, NAN}}).ok());
        break;
    }
  }

  bool AllArrived(uint64_t step) const { return std::all_of(next_.begin(), next_.end(), [&](uint64_t next) { return next > step; }); }

  void PrepareAndMaybeApply() {
    const uint64_t step = head_.step + 1;
    const auto prepared = shard->PrepareStep(Id(step), absl::Now());
    if (!AllArrived(step)) {
      ASSERT_EQ(prepared.status().code(), absl::StatusCode::kDeadlineExceeded);
      ASSERT_EQ(shard->ApplyStep(Id(step), {1, 1, 0}).status().code(), absl::StatusCode::kFailedPrecondition);
      return;
    }
    double squares = 0;
    for (const auto& [id, value] : pending_[step]) squares += double{value} * value * spec.BlockElements(id.level);
    ASSERT_EQ(*prepared, squares);
    if (Pick(5) == 0) return;
    for (uint32_t repeats = 1 + Pick(2); repeats > 0; --repeats) ASSERT_EQ(*shard->ApplyStep(Id(step), {1, 1, 0}), step);
    for (const auto& [id, value] : pending_[step]) {
      head_.blocks[id].first += value;
      head_.blocks[id].second = step;
    }
    pending_.erase(step);
    head_.step = step;
  }

  void TakeCheckpoint() {
    const std::string id = "c" + std::to_string(++checkpoints_);
    ASSERT_OK(shard->PrepareCheckpoint(id, head_.step));
    cuts_[id] = head_;
    if (Pick(4) == 0) return;
    ASSERT_OK(shard->CommitCheckpoint(id));
    committed_ = head_;
  }

  void RestoreSomething() {
    const std::vector<CheckpointInfo> listed = shard->ListCheckpoints();
    if (listed.empty()) return;
    const std::string id = listed[Pick(static_cast<uint32_t>(listed.size()))].id;
    ASSERT_OK(shard->RestoreCheckpoint(id));
    head_ = committed_ = cuts_.at(id);
    Compare();
    NewEpoch();
  }

  void CrashAndReopen() {
    Open();
    if (options.durability == Durability::kCheckpoint) head_ = committed_;
    Compare();
    NewEpoch();
  }

  void Compare() {
    ASSERT_EQ(shard->Status().head_step, head_.step);
    for (BlockId id : AllBlocks()) {
      const auto expected = head_.blocks.find(id);
      ASSERT_EQ(Count(id), expected == head_.blocks.end() ? 0 : expected->second.first) << ToString(id);
      ASSERT_EQ(shard->Read(id)->version, expected == head_.blocks.end() ? 0 : expected->second.second) << ToString(id);
    }
  }

  BlockId RandomBlock() {
    const std::vector<BlockId> blocks = AllBlocks();
    return blocks[Pick(static_cast<uint32_t>(blocks.size()))];
  }

  std::mt19937 random_;
  uint32_t ranks_ = 1, staleness_ = 0;
  uint64_t epoch_ = 0, checkpoints_ = 0;
  ModelHead head_, committed_;
  std::map<std::string, ModelHead> cuts_;
  std::map<uint64_t, std::map<BlockId, float>> pending_;
  std::vector<uint64_t> next_;
};

TEST(ShardRandom, EqualsTheModel) {
  for (uint32_t seed = 1; seed <= 10; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    RandomRun run(seed, InMemoryBlockStore::Open);
    ASSERT_NO_FATAL_FAILURE(run.Run(400));
  }
}

TEST(ShardRandom, EqualsTheModelThatForgetsNoStep) {
  for (uint32_t seed = 201; seed <= 206; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    RandomRun run(seed, InMemoryBlockStore::Open, Durability::kStep);
    ASSERT_NO_FATAL_FAILURE(run.Run(400));
  }
}

TEST(ShardRandom, EqualsTheModelOnRocksDb) {
  for (uint32_t seed = 101; seed <= 102; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    RandomRun run(seed, RocksDbStore::Open);
    ASSERT_NO_FATAL_FAILURE(run.Run(200));
  }
}

}  // namespace
}  // namespace membank
