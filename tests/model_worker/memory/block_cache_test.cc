#include "model_worker/memory/block_cache.h"

#include <cstdlib>
#include <filesystem>

#include "common/bank/block_init.h"
#include "gtest/gtest.h"
#include "tests/testing/shard_memory_client.h"

namespace membank {
namespace {

using testing_support::ShardMemoryClient;

class BlockCacheTest : public ::testing::Test {
 protected:
  BlockCacheTest() {
    std::string name = ::testing::TempDir() + "/membank-cache-XXXXXX";
    directory_ = mkdtemp(name.data());
    spec_.bank_id = "tiny";
    spec_.fan_out = 4;
    spec_.widths = {2, 1};
    spec_.layers = 2;
    spec_.hidden = 8;
    spec_.dtype = DType::kF32;
    spec_.anchor_fingerprint = spec_.tree_fingerprint = "aa";
    client_ = std::make_unique<ShardMemoryClient>(spec_, directory_, 2);
    RunSettings settings;
    settings.run_id = "r";
    EXPECT_TRUE(client_->BeginRun(settings).ok());
  }
  ~BlockCacheTest() override { std::filesystem::remove_all(directory_); }

  BlockCache NewCache(uint64_t capacity = 1 << 20, torch::Dtype dtype = torch::kFloat, const std::string& version = "") {
    return BlockCache(client_.get(), {version, dtype, capacity, std::chrono::milliseconds(500)});
  }

  // Adds to every weight of the block with one SGD-like AdamW step.
  void TrainBlock(BlockId id, uint64_t step) {
    const std::vector<float> gradient(spec_.BlockElements(id.level), 1.0f);
    const BlockGradient push{id, DType::kF32, {reinterpret_cast<const uint8_t*>(gradient.data()), gradient.size() * 4}};
    const StepId step_id{"r", 1, step};
    ASSERT_TRUE(client_->Push(step_id, 0, {&push, 1}).ok());
    ASSERT_TRUE(client_->PrepareStep(step_id, std::chrono::seconds(10)).ok());
    ASSERT_TRUE(client_->ApplyStep(step_id, {1.0f, 0.1f, 0.0f}).ok());
  }

  torch::Tensor Initial(BlockId id) {
    std::vector<float> values(spec_.BlockElements(id.level));
    InitBlock(spec_, id, absl::MakeSpan(values));
    return torch::tensor(values);
  }

  std::string directory_;
  BankSpec spec_;
  std::unique_ptr<ShardMemoryClient> client_;
};

TEST_F(BlockCacheTest, UnchangedBlocksCostNoBytes) {
  BlockCache cache = NewCache();
  const std::vector<BlockId> ids = {{1, 3}, {2, 7}, {1, 4}};
  const auto first = cache.Get(ids);
  ASSERT_TRUE(first.ok()) << first.status();
  for (size_t i = 0; i < ids.size(); ++i) EXPECT_TRUE(torch::equal((*first)[i]->values, Initial(ids[i])));
  const uint64_t bytes = client_->traffic().fetched_bytes;
  ASSERT_TRUE(cache.Get(ids).ok());
  EXPECT_EQ(client_->traffic().fetched_bytes, bytes);
  EXPECT_EQ(client_->traffic().unchanged_blocks, 3u);
  EXPECT_EQ(cache.resident_bytes(), bytes);
}

TEST_F(BlockCacheTest, AStepBringsTheNewVersionAndLeavesHeldBlocksAsTheyWere) {
  BlockCache cache = NewCache();
  const BlockId id{1, 2};
  const auto held = cache.Get({&id, 1});
  ASSERT_TRUE(held.ok());
  TrainBlock(id, 1);
  const auto fresh = cache.Get({&id, 1}, /*min_step=*/1);
  ASSERT_TRUE(fresh.ok());
  EXPECT_EQ((*fresh)[0]->version, 1u);
  EXPECT_TRUE(torch::equal((*held)[0]->values, Initial(id)));
  EXPECT_TRUE(torch::allclose((*fresh)[0]->values, Initial(id) - 0.1, 1e-4, 1e-5));
}

TEST_F(BlockCacheTest, ABlockNobodyHoldsIsOverwrittenInPlace) {
  BlockCache cache = NewCache();
  const BlockId id{1, 2};
  const void* before = (*cache.Get({&id, 1}))[0]->values.data_ptr();
  TrainBlock(id, 1);
  const auto fresh = cache.Get({&id, 1}, 1);
  ASSERT_TRUE(fresh.ok());
  EXPECT_EQ((*fresh)[0]->values.data_ptr(), before);
  EXPECT_EQ((*fresh)[0]->version, 1u);
}

TEST_F(BlockCacheTest, TheLeastRecentlyUsedGoFirst) {
  BlockCache cache = NewCache(/*capacity=*/2 * spec_.BlockBytes(1));
  for (const uint32_t cluster : {0u, 1u, 0u, 2u}) {
    const BlockId id{1, cluster};
    ASSERT_TRUE(cache.Get({&id, 1}).ok());
  }
  EXPECT_EQ(cache.resident_bytes(), 2 * spec_.BlockBytes(1));
  const uint64_t bytes = client_->traffic().fetched_bytes;
  const std::vector<BlockId> resident = {{1, 0}, {1, 2}};
  ASSERT_TRUE(cache.Get(resident).ok());
  EXPECT_EQ(client_->traffic().fetched_bytes, bytes);
}

TEST_F(BlockCacheTest, ConvertsToTheModelsDtype) {
  BlockCache cache = NewCache(1 << 20, torch::kBFloat16);
  const BlockId id{2, 5};
  const auto block = cache.Get({&id, 1});
  ASSERT_TRUE(block.ok());
  EXPECT_TRUE(torch::equal((*block)[0]->values, Initial(id).to(torch::kBFloat16)));
}

TEST_F(BlockCacheTest, APublishedVersionIsAskedForOnce) {
  const BlockId id{1, 1};
  TrainBlock(id, 1);
  ASSERT_TRUE(client_->PrepareCheckpoint("c", 1).ok() && client_->CommitCheckpoint("c").ok() && client_->Publish("c", "v1").ok());
  TrainBlock(id, 2);
  BlockCache cache = NewCache(1 << 20, torch::kFloat, "v1");
  const auto block = cache.Get({&id, 1});
  ASSERT_TRUE(block.ok()) << block.status();
  EXPECT_EQ((*block)[0]->version, 1u);
  const uint64_t fetched = client_->traffic().fetched_blocks;
  ASSERT_TRUE(cache.Get({&id, 1}).ok());
  EXPECT_EQ(client_->traffic().fetched_blocks, fetched);
}

TEST_F(BlockCacheTest, AFailedFetchNamesItsCauseAndOtherCachesGoOn) {
  BlockCache cache = NewCache();
  const BlockId id{1, 1};
  ASSERT_TRUE(cache.Get({&id, 1}).ok());
  EXPECT_EQ(NewCache(1 << 20, torch::kFloat, "missing").Get({&id, 1}).status().code(), absl::StatusCode::kNotFound);
  EXPECT_FALSE(cache.Get({&id, 1}, /*min_step=*/5).ok());  // nobody applies step 5
  const auto again = cache.Get({&id, 1});
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_TRUE(torch::equal((*again)[0]->values, Initial(id)));
}

}  // namespace
}  // namespace membank
