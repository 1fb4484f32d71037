#include "model_worker/serve/block_loader.h"

#include <atomic>

#include "absl/synchronization/blocking_counter.h"
#include "tests/model_worker/serve/serve_fixture.h"

namespace membank::serve_test {
namespace {

class BlockLoaderTest : public ::testing::Test {
 protected:
  BlockLoader& loader(BlockLoaderOptions options = {torch::kFloat}) {
    if (!loader_) loader_ = std::make_unique<BlockLoader>(&memory_, options);
    return *loader_;
  }

  absl::StatusOr<std::vector<BlockHandle>> Load(const std::vector<BlockId>& ids) {
    absl::Notification done;
    absl::StatusOr<std::vector<BlockHandle>> result = Internal("not called");
    loader().Load(version_, ids, [&](absl::StatusOr<std::vector<BlockHandle>> blocks) {
      result = std::move(blocks);
      done.Notify();
    });
    done.WaitForNotification();
    return result;
  }

  FakeMemory memory_;
  std::string version_ = "v1";
  std::unique_ptr<BlockLoader> loader_;
};

TEST_F(BlockLoaderTest, LoadsInOrderAndConverts) {
  loader({torch::kBFloat16});
  auto blocks = Load({{2, 5}, {1, 1}});
  ASSERT_TRUE(blocks.ok()) << blocks.status();
  EXPECT_EQ((*blocks)[0]->id, (BlockId{2, 5}));
  EXPECT_EQ((*blocks)[1]->id, (BlockId{1, 1}));
  EXPECT_EQ((*blocks)[1]->values.dtype(), torch::kBFloat16);
  std::vector<float> expected = FakeMemory::Values(memory_.spec(), {1, 1}, 1);
  EXPECT_TRUE(torch::equal((*blocks)[1]->values, torch::tensor(expected).to(torch::kBFloat16)));
  EXPECT_EQ(memory_.last_bank_version(), "v1");
  EXPECT_EQ(loader().ResidentBlocks(), (std::vector<BlockId>{{1, 1}, {2, 5}}));
}

TEST_F(BlockLoaderTest, Int8BecomesTheModelsDtype) {
  memory_.ServeAsInt8();
  loader({torch::kBFloat16});
  auto blocks = Load({{2, 5}, {1, 1}});
  ASSERT_TRUE(blocks.ok()) << blocks.status();
  for (const BlockHandle& block : *blocks) {
    const BankSpec& spec = memory_.spec();
    const std::vector<float> values = FakeMemory::Values(spec, block->id, 1);
    std::vector<uint8_t> payload(PayloadBytes(spec, block->id.level, PayloadType::kI8Rows));
    ASSERT_TRUE(QuantisePayload(spec, block->id.level, {reinterpret_cast<const uint8_t*>(values.data()), values.size() * 4}, absl::MakeSpan(payload)).ok());
    std::vector<float> expected(values.size());
    DequantisePayload(spec, block->id.level, payload, absl::MakeSpan(expected));
    EXPECT_TRUE(torch::equal(block->values, torch::tensor(expected).to(torch::kBFloat16))) << ToString(block->id);
    EXPECT_TRUE(torch::allclose(block->values.to(torch::kFloat), torch::tensor(values), 0, 0.4 / 127 / 2 + 0.4 / 256));
  }
}

TEST_F(BlockLoaderTest, ManyWaitersOneFetch) {
  memory_.Hold({1, 0});
  absl::BlockingCounter done(20);
  for (int i = 0; i < 20; ++i) {
    loader().Load(version_, {{1, 0}}, [&](absl::StatusOr<std::vector<BlockHandle>> blocks) {
      EXPECT_TRUE(blocks.ok());
      done.DecrementCount();
    });
  }
  memory_.Release();
  done.Wait();
  EXPECT_EQ(memory_.fetches({1, 0}), 1);
  ASSERT_TRUE(Load({{1, 0}}).ok());
  EXPECT_EQ(memory_.fetches({1, 0}), 1) << "a published version never changes";
}

TEST_F(BlockLoaderTest, TheLiveHeadIsAskedAgain) {
  version_ = "";
  ASSERT_TRUE(Load({{1, 0}}).ok());
  auto same = Load({{1, 0}});
  EXPECT_EQ(memory_.unchanged(), 1);
  memory_.SetVersion(2);
  auto newer = Load({{1, 0}});
  ASSERT_TRUE(newer.ok() && same.ok());
  EXPECT_EQ((*newer)[0]->version, 2u);
  EXPECT_EQ((*same)[0]->version, 1u) << "a handle never changes";
  EXPECT_FALSE(torch::equal((*newer)[0]->values, (*same)[0]->values));
}

TEST_F(BlockLoaderTest, VersionsLieSideBySideAndNeverMix) {
  const auto first = Load({{1, 0}, {2, 1}});
  version_ = "v2";
  const auto second = Load({{1, 0}, {2, 1}});
  version_ = "v1";
  const auto back = Load({{1, 0}, {2, 1}});
  ASSERT_TRUE(first.ok() && second.ok() && back.ok());
  for (size_t i = 0; i < 2; ++i) {
    EXPECT_FALSE(torch::equal((*first)[i]->values, (*second)[i]->values));
    EXPECT_EQ((*first)[i], (*back)[i]) << "rolling back finds what is still resident";
  }
  EXPECT_EQ(memory_.fetches({1, 0}), 2);
  EXPECT_EQ(loader().ResidentBlocks(), (std::vector<BlockId>{{1, 0}, {2, 1}}));
}

TEST_F(BlockLoaderTest, AFailureIsOneBlocksAndIsNotKept) {
  memory_.Fail({1, 1}, Unavailable("server m1 is away"));
  auto failed = Load({{1, 0}, {1, 1}});
  EXPECT_EQ(failed.status().code(), absl::StatusCode::kUnavailable);
  EXPECT_NE(failed.status().message().find("block 1/1 of bank tiny"), std::string::npos) << failed.status();
  EXPECT_EQ(loader().ResidentBlocks(), (std::vector<BlockId>{{1, 0}}));
  memory_.Fail({1, 1}, absl::OkStatus());
  EXPECT_EQ(memory_.fetches({1, 1}), 1);
  EXPECT_TRUE(Load({{1, 0}}).ok());
}

// Whoever asks after the access table has changed must not get what a fetch from before the change brings.
TEST_F(BlockLoaderTest, AFetchFromBeforeAChangeOfTheAccessTableIsNotEnough) {
  std::atomic<uint64_t> epoch{1};
  const auto table = [&](std::chrono::milliseconds) -> absl::StatusOr<AccessView> {
    AccessTable table;
    table.epoch = epoch;
    return AccessView{table, {table.epoch}};
  };
  AccessWatch watch(table, memory_.spec().fan_out, absl::Milliseconds(500));
  BlockLoaderOptions options = {torch::kFloat};
  options.access = &watch;
  loader(options);
  memory_.Hold({1, 0});
  absl::BlockingCounter done(2);
  absl::Status before, after;
  const auto load = [&](absl::Status* status) {
    loader().Load(version_, {{1, 0}}, [&done, status](absl::StatusOr<std::vector<BlockHandle>> blocks) {
      *status = blocks.status();
      done.DecrementCount();
    });
  };
  load(&before);
  while (memory_.waiting() == 0) absl::SleepFor(absl::Milliseconds(1));  // it asks at epoch 1
  epoch = 2;
  while (watch.epoch() < 2) absl::SleepFor(absl::Milliseconds(1));
  load(&after);
  memory_.FailAfter({1, 0}, 1, absl::PermissionDeniedError("block 1/0 is owned"));
  memory_.Release();
  done.Wait();
  EXPECT_TRUE(before.ok()) << before;
  EXPECT_EQ(after.code(), absl::StatusCode::kPermissionDenied) << after;
  EXPECT_EQ(memory_.fetches({1, 0}), 2);
}

TEST_F(BlockLoaderTest, DropsTheLeastRecentlyUsedThatNobodyHolds) {
  const uint64_t block = memory_.spec().BlockElements(2) * 4;
  loader({torch::kFloat, 2 * block});
  auto pinned = Load({{2, 0}});
  ASSERT_TRUE(Load({{2, 1}}).ok());
  ASSERT_TRUE(Load({{2, 2}}).ok());
  EXPECT_EQ(loader().ResidentBlocks(), (std::vector<BlockId>{{2, 0}, {2, 2}}));
  EXPECT_EQ(loader().resident_bytes(), 2 * block);
  pinned = absl::CancelledError();
  ASSERT_TRUE(Load({{2, 3}}).ok());
  EXPECT_EQ(loader().ResidentBlocks(), (std::vector<BlockId>{{2, 2}, {2, 3}}));
}

TEST_F(BlockLoaderTest, TheUpperLevelsOfTheVersionInUseStay) {
  BlockLoaderOptions options{torch::kFloat};
  options.capacity_bytes = 0;
  options.resident_levels = 1;
  const BankSpec& spec = memory_.spec();
  const auto upper = [&] {
    std::vector<BlockId> ids;
    for (uint32_t cluster = 0; cluster < spec.fan_out; ++cluster) ids.push_back({1, cluster});
    ids.push_back(GenericBlock(spec.fan_out, 1));
    return ids;
  }();
  const auto fetches = [&] {  // of the upper level
    int sum = 0;
    for (const BlockId id : upper) sum += memory_.fetches(id);
    return sum;
  };
  const auto await_resident = [&](const std::vector<BlockId>& ids) {
    for (int i = 0; i < 2000 && loader().ResidentBlocks() != ids; ++i) absl::SleepFor(absl::Milliseconds(5));
    EXPECT_EQ(loader().ResidentBlocks(), ids);
  };
  loader(options).KeepResident("v1");
  await_resident(upper);
  EXPECT_EQ(loader().resident_bytes(), upper.size() * spec.BlockElements(1) * 4);
  ASSERT_TRUE(Load({{1, 2}, {2, 5}}).ok());
  ASSERT_TRUE(Load({{2, 6}}).ok());  // drops 2/5, which nothing uses
  EXPECT_EQ(loader().ResidentBlocks().front(), (BlockId{1, 0}));
  EXPECT_LE(loader().ResidentBlocks().size(), upper.size() + 1);
  const int first = fetches();
  ASSERT_TRUE(Load(upper).ok());
  EXPECT_EQ(fetches(), first) << "resident blocks were fetched again";

  version_ = "v2";
  loader().KeepResident("v2");
  for (int i = 0; i < 2000 && fetches() < first + static_cast<int>(upper.size()); ++i) absl::SleepFor(absl::Milliseconds(5));
  ASSERT_TRUE(Load({{2, 7}}).ok());  // what was kept of v1 may go now
  const int after = fetches();
  ASSERT_TRUE(Load(upper).ok());
  EXPECT_EQ(fetches(), after);
  version_ = "v1";
  ASSERT_TRUE(Load({{1, 2}}).ok());
  EXPECT_EQ(fetches(), after + 1);
}

}  // namespace
}  // namespace membank::serve_test
