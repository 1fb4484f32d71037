// Checkpoints beside steps: a snapshot is of its step whatever comes after it, and writing it holds no step up.
#include <gtest/gtest.h>

#include <thread>

#include "absl/synchronization/notification.h"
#include "memory_server/shard.h"
#include "tests/memory_server/shard_fixture.h"

namespace membank {
namespace {

// A store whose Flush waits.
class HeldStore final : public BlockStore {
 public:
  HeldStore(std::unique_ptr<BlockStore> store, absl::Notification* flushing, absl::Notification* go)
      : store_(std::move(store)), flushing_(flushing), go_(go) {}

  absl::Status Put(std::string_view key, absl::Span<const uint8_t> value) override { return store_->Put(key, value); }
  absl::Status Delete(std::string_view key) override { return store_->Delete(key); }
  absl::Status Apply(absl::Span<const Write> batch) override { return store_->Apply(batch); }
  absl::Status Get(std::string_view key, const std::function<void(absl::Span<const uint8_t>)>& visit) override { return store_->Get(key, visit); }
  absl::Status Scan(std::string_view prefix, const Visitor& visit) override { return store_->Scan(prefix, visit); }
  absl::Status Seek(std::string_view key, const Visitor& visit) override { return store_->Seek(key, visit); }
  absl::Status Erase(std::string_view first, std::string_view last) override { return store_->Erase(first, last); }
  absl::Status Verify() override { return store_->Verify(); }
  absl::Status Cut(const std::string& directory) override { return store_->Cut(directory); }
  absl::Status Flush() override {
    if (!flushing_->HasBeenNotified()) flushing_->Notify();
    go_->WaitForNotification();
    return store_->Flush();
  }

 private:
  const std::unique_ptr<BlockStore> store_;
  absl::Notification* const flushing_;
  absl::Notification* const go_;
};

class SnapshotTest : public ::testing::TestWithParam<DType>, protected ShardFixture {
 protected:
  SnapshotTest() : ShardFixture(GetParam()) {}

  absl::Status TrainAdamW(uint64_t step) {
    return Train(step, {{{1, static_cast<uint32_t>(step % 2)}, 0.5f}, {{2, 3}, -0.25f * static_cast<float>(step)}}, {1, 1e-2f, 0.1f});
  }
};

TEST_P(SnapshotTest, ItIsOfItsStepWhateverComesAfterIt) {
  Open();
  ASSERT_OK(Begin(1, 1, 0, OptimizerKind::kAdamW));
  for (uint64_t step = 1; step <= 3; ++step) ASSERT_OK(TrainAdamW(step));
  const auto at_three = AllPayloads();
  ASSERT_OK(shard->SnapshotCheckpoint("s", 3));
  ASSERT_OK(shard->SnapshotCheckpoint("s", 3));
  for (uint64_t step = 4; step <= 6; ++step) ASSERT_OK(TrainAdamW(step));
  const auto at_six = AllPayloads();
  EXPECT_CODE(shard->PrepareCheckpoint("other", 3), kFailedPrecondition, "the head of server \"m0\" is at step 6");
  EXPECT_CODE(shard->PrepareCheckpoint("s", 3), kFailedPrecondition, "wants step 3");  // another checkpoint gave the snapshot up
  ASSERT_OK(shard->SnapshotCheckpoint("six", 6));
  ASSERT_OK(TrainAdamW(7));
  ASSERT_OK(shard->PrepareCheckpoint("six", 6));
  ASSERT_OK(shard->PrepareCheckpoint("six", 6));  // asked again
  ASSERT_OK(shard->CommitCheckpoint("six"));
  const auto at_seven = AllPayloads();
  Open();
  EXPECT_EQ(shard->Status().head_step, 6u);
  EXPECT_EQ(AllPayloads(), at_six);
  ASSERT_OK(Begin(2, 1, 0, OptimizerKind::kAdamW));
  ASSERT_OK(TrainAdamW(7));  // the moments are those of step 6, too
  EXPECT_EQ(AllPayloads(), at_seven);
  EXPECT_NE(at_three, at_six);
}

TEST_P(SnapshotTest, WritingItHoldsNoStepUp) {
  absl::Notification flushing, go;
  options.open_store = [&](const std::string& directory, StoreAccess access) -> absl::StatusOr<std::unique_ptr<BlockStore>> {
    auto store = InMemoryBlockStore::Open(directory, access);
    if (!store.ok() || access == StoreAccess::kReadOnly) return store;
    return std::make_unique<HeldStore>(*std::move(store), &flushing, &go);
  };
  Open();
  ASSERT_OK(Begin(1, 1, 0, OptimizerKind::kAdamW));
  for (uint64_t step = 1; step <= 2; ++step) ASSERT_OK(TrainAdamW(step));
  const auto at_two = AllPayloads();
  absl::Status prepared;
  std::thread writer([&] { prepared = shard->PrepareCheckpoint("c", 2); });
  flushing.WaitForNotification();
  for (uint64_t step = 3; step <= 5; ++step) ASSERT_OK(TrainAdamW(step));
  EXPECT_EQ(shard->Status().head_step, 5u);
  go.Notify();
  writer.join();
  ASSERT_OK(prepared);
  ASSERT_OK(shard->CommitCheckpoint("c"));
  Open();
  EXPECT_EQ(AllPayloads(), at_two);
}

TEST_P(SnapshotTest, ANewEpochOrARestoreGivesItUp) {
  Open();
  ASSERT_OK(Begin(1));
  ASSERT_OK(Train(1, {{{1, 0}, 1}}));
  ASSERT_OK(Checkpoint("one"));
  ASSERT_OK(shard->SnapshotCheckpoint("s", 1));
  ASSERT_OK(Begin(2));
  ASSERT_OK(Train(2, {{{1, 0}, 1}}));
  EXPECT_CODE(shard->PrepareCheckpoint("s", 1), kFailedPrecondition, "is at step 2");
  ASSERT_OK(shard->SnapshotCheckpoint("t", 2));
  ASSERT_OK(shard->RestoreCheckpoint("one"));
  EXPECT_CODE(shard->PrepareCheckpoint("t", 2), kFailedPrecondition, "is at step 1");
}

TEST_P(SnapshotTest, AServerMayStopWithASnapshotNobodyWrote) {
  Open();
  ASSERT_OK(Begin(1));
  for (uint64_t step = 1; step <= 2; ++step) ASSERT_OK(TrainAdamW(step));
  ASSERT_OK(shard->SnapshotCheckpoint("s", 2));
  shard.reset();
}

INSTANTIATE_TEST_SUITE_P(DTypes, SnapshotTest, ::testing::Values(DType::kF32, DType::kBF16),
                         [](const auto& info) { return std::string(DTypeName(info.param)); });

}  // namespace
}  // namespace membank
