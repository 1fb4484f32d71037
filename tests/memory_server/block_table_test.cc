// The block table below a shard: what stays in RAM, what comes back from disk, who waits for whom, and what a failing disk may do.
#include "memory_server/block_table.h"

#include <atomic>
#include <mutex>
#include <thread>

#include "common/base/crc32c.h"
#include "tests/memory_server/shard_fixture.h"

namespace membank {
namespace {

// What the stores of one test do, and whether their writes work.
struct Disk {
  std::mutex mu;  // held by a test: writes wait
  std::atomic<bool> full = false, broken = false;
  std::atomic<int> opened = 0;
};

class TestStore : public BlockStore {
 public:
  TestStore(std::unique_ptr<BlockStore> base, Disk* disk) : base_(std::move(base)), disk_(disk) {}
  absl::Status Put(std::string_view key, absl::Span<const uint8_t> value) override {
    const Write write{std::string(key), {value}};
    return Apply({&write, 1});
  }
  absl::Status Delete(std::string_view key) override { return base_->Delete(key); }
  absl::Status Apply(absl::Span<const Write> batch) override {
    const std::lock_guard lock(disk_->mu);
    if (disk_->full) return absl::ResourceExhaustedError("no space left on device");
    if (disk_->broken) return absl::InternalError("input/output error");
    return base_->Apply(batch);
  }
  absl::Status Get(std::string_view key, const std::function<void(absl::Span<const uint8_t>)>& visit) override { return base_->Get(key, visit); }
  absl::Status Scan(std::string_view prefix, const Visitor& visit) override { return base_->Scan(prefix, visit); }
  absl::Status Seek(std::string_view key, const Visitor& visit) override { return base_->Seek(key, visit); }
  absl::Status Erase(std::string_view first, std::string_view last) override {
    if (disk_->full) return absl::ResourceExhaustedError("no space left on device");
    return base_->Erase(first, last);
  }
  absl::Status Verify() override { return base_->Verify(); }
  absl::Status Flush() override { return absl::OkStatus(); }
  absl::Status Cut(const std::string& directory) override { return base_->Cut(directory); }

 private:
  const std::unique_ptr<BlockStore> base_;
  Disk* const disk_;
};

constexpr uint64_t kPayload = 480, kState = 960;  // of a level-1 block of SmallSpec
constexpr uint64_t kBlock = kPayload + kState;

class BlockTableTest : public ::testing::Test {
 protected:
  BlockTable& Open(uint64_t budget) {
    BlockTable::Options options;
    options.memory_budget_bytes = budget;
    options.check_free_space = [](uint64_t) { return absl::OkStatus(); };
    options.open_stores = [this] { return NewStores(); };
    options.room_timeout = absl::Milliseconds(50);
    table_ = std::make_unique<BlockTable>(spec_, BufferPool::Create(0), std::move(options));
    table_->Install({}, *NewStores());
    return *table_;
  }
  absl::StatusOr<BlockTable::LiveStores> NewStores() {
    auto stores = std::make_shared<HeadStores>();
    const std::string root = testing::TempDir() + "/block_table." + std::to_string(::getpid()) + "." + std::to_string(++disk_.opened);
    stores->weights = std::make_unique<TestStore>(*InMemoryBlockStore::Open(root + "/w", StoreAccess::kReadWrite), &disk_);
    stores->state = std::make_unique<TestStore>(*InMemoryBlockStore::Open(root + "/s", StoreAccess::kReadWrite), &disk_);
    return stores;
  }

  // Makes every byte of the block's next version `value`; its old state must hold `before`.
  absl::Status Write(uint32_t cluster, uint8_t value, int before = -1) {
    const BlockId id{1, cluster};
    auto update = table_->BeginUpdate(id, kState, false);
    if (!update.ok()) return update.status();
    TrainState& state = *update->state;
    if (update->version == 0) {
      state.m = Buffer(kState / 2);
      state.v = Buffer(kState / 2);
    } else if (before >= 0) {
      EXPECT_EQ(state.m.data()[7], before);
    }
    for (Buffer* array : {&state.m, &state.v}) std::fill_n(array->data(), array->size(), value);
    Buffer payload(kPayload);
    std::fill_n(payload.data(), kPayload, value);
    const uint32_t crc = Crc32c(payload.data(), kPayload);
    const uint64_t version = update->version + 1;
    table_->FinishUpdate(*std::move(update), version, crc, Share(std::move(payload)));
    return absl::OkStatus();
  }
  int Value(uint32_t cluster) {
    const auto read = table_->Read({1, cluster});
    EXPECT_TRUE(read.ok()) << read.status();
    return read.ok() && read->payload != nullptr ? read->payload->data()[11] : -1;
  }
  template <typename Condition>
  static bool Eventually(const Condition& condition) {
    for (int i = 0; i < 2000 && !condition(); ++i) absl::SleepFor(absl::Milliseconds(1));
    return condition();
  }

  const BankSpec spec_ = SmallSpec();
  Disk disk_;
  std::unique_ptr<BlockTable> table_;
};

TEST_F(BlockTableTest, WithoutABudgetEverythingStaysInRam) {
  BlockTable& table = Open(0);
  for (uint32_t cluster = 0; cluster < 4; ++cluster) ASSERT_OK(Write(cluster, 10 + cluster));
  for (uint32_t cluster = 0; cluster < 4; ++cluster) EXPECT_EQ(Value(cluster), 10 + cluster);
  EXPECT_EQ(table.GetStats().resident_bytes, 4 * kBlock);
  EXPECT_EQ(table.GetStats().dirty_bytes, 4 * kBlock);
  EXPECT_EQ(table.GetStats().spilled_blocks, 0u);
  EXPECT_EQ(table.VersionOf({1, 0}), 1u);
  EXPECT_EQ(table.VersionOf({2, 0}), 0u);
  EXPECT_EQ(table.Read({2, 0})->payload, nullptr);
  EXPECT_EQ(table.ReadResident({1, 3})->payload, table.Read({1, 3})->payload);
  EXPECT_FALSE(table.ReadResident({2, 0}).has_value());
}

TEST_F(BlockTableTest, BlocksSpillAndComeBackAndTheBudgetHolds) {
  const uint64_t budget = BlockTable::MinimumBudget(spec_);
  BlockTable& table = Open(budget);
  int at_hand = 0, spilled = 0;
  for (int round = 0; round < 20; ++round) {
    for (uint32_t cluster = 0; cluster < 4; ++cluster) {
      ASSERT_OK(Write(cluster, 4 * round + cluster, round == 0 ? -1 : 4 * (round - 1) + cluster));
      ASSERT_LE(table.GetStats().resident_bytes, budget);
    }
    for (uint32_t cluster = 0; cluster < 4; ++cluster) {
      const auto resident = table.ReadResident({1, cluster});
      resident.has_value() ? ++at_hand : ++spilled;
      if (resident.has_value()) ASSERT_EQ(resident->payload->data()[11], 4 * round + cluster);
      ASSERT_EQ(Value(cluster), 4 * round + cluster);
    }
    ASSERT_LE(table.GetStats().resident_bytes, budget);
  }
  EXPECT_GT(at_hand, 0);
  EXPECT_GT(spilled, 0);
  EXPECT_GT(table.GetStats().spilled_blocks, 40u);
  EXPECT_GT(table.GetStats().disk_reads, 20u);
}

TEST_F(BlockTableTest, AnUpdateWaitsForTheWriterAndDirtyBlocksStayReadable) {
  Open(BlockTable::MinimumBudget(spec_));
  std::unique_lock slow(disk_.mu);
  ASSERT_OK(Write(0, 1));
  std::atomic<bool> done = false;
  std::thread second([&] {
    EXPECT_TRUE(Write(1, 2).ok());
    done = true;
  });
  absl::SleepFor(absl::Milliseconds(150));  // longer than room_timeout: a slow disk is no error
  EXPECT_FALSE(done);
  EXPECT_EQ(Value(0), 1);
  slow.unlock();
  second.join();
  EXPECT_EQ(Value(0), 1);
  EXPECT_EQ(Value(1), 2);
}

TEST_F(BlockTableTest, AFullDiskIsSaidReadsGoOnAndItRecovers) {
  BlockTable& table = Open(BlockTable::MinimumBudget(spec_));
  ASSERT_OK(Write(0, 1));
  ASSERT_OK(Write(1, 2));
  ASSERT_TRUE(Eventually([&] { return table.GetStats().dirty_bytes <= kBlock; }));
  disk_.full = true;
  absl::Status refused;
  for (uint32_t cluster = 2; cluster < 4 && refused.ok(); ++cluster) refused = Write(cluster, 3);
  EXPECT_CODE(refused, kResourceExhausted, "no space left on device");
  EXPECT_CODE(refused, kResourceExhausted, "no room for block");
  EXPECT_EQ(Value(0), 1);
  EXPECT_EQ(Value(1), 2);
  disk_.full = false;
  ASSERT_TRUE(Eventually([&] { return Write(3, 4).ok(); }));
  EXPECT_EQ(disk_.opened, 1) << "a full disk is no reason to start the stores anew";
  EXPECT_EQ(Value(0), 1);
  EXPECT_EQ(Value(3), 4);
}

TEST_F(BlockTableTest, FailedStoresAreReplacedAndLoseNothing) {
  BlockTable& table = Open(BlockTable::MinimumBudget(spec_));
  for (uint32_t cluster = 0; cluster < 4; ++cluster) ASSERT_OK(Write(cluster, 5 + cluster));
  disk_.broken = true;
  int first = 5;
  while (Write(0, 20).ok()) {  // until there is no room
    first = 20;
    if (!Write(1, 21).ok()) break;
  }
  EXPECT_EQ(Value(3), 8);
  disk_.broken = false;
  ASSERT_TRUE(Eventually([&] { return Write(2, 30).ok(); }));
  ASSERT_OK(Write(3, 31, 8));
  EXPECT_GT(disk_.opened, 1);
  EXPECT_EQ(Value(0), first);
  EXPECT_EQ(Value(2), 30);
  EXPECT_EQ(Value(3), 31);
  auto cut = table.BeginCut();
  ASSERT_OK(cut);
  EXPECT_EQ((*cut)->digest().blocks, 4u);
}

TEST_F(BlockTableTest, ACutHoldsItsMomentWhileUpdatesGoOn) {
  BlockTable& table = Open(0);
  ASSERT_OK(Write(0, 1));
  ASSERT_OK(Write(1, 2));
  {
    auto cut = table.BeginCut();
    ASSERT_OK(cut);
    EXPECT_EQ((*cut)->dirty_bytes(), 2 * kBlock);
    ASSERT_OK(Write(0, 9, 1));
    EXPECT_EQ(Value(0), 9);
    int taken = 0;
    ASSERT_OK((*cut)->Write([&](const HeadStores& stores) -> absl::Status {
      ++taken;
      EXPECT_EQ(ReadPayload(stores, spec_, {1, 0}, BufferPool::Create(0).get())->payload->data()[3], 1);
      EXPECT_EQ((*ReadState(stores, spec_, {1, 0}, 1, BufferPool::Create(0)))->m.data()[3], 1);
      return absl::OkStatus();
    }));
    EXPECT_EQ(taken, 1);
  }
  auto next = table.BeginCut();
  ASSERT_OK(next);
  EXPECT_EQ((*next)->digest().blocks, 2u);
  ASSERT_EQ((*next)->dirty().size(), 1u) << "what was written for a cut is clean, what changed meanwhile is not";
  EXPECT_EQ((*next)->dirty()[0].version, 2u);
}

TEST_F(BlockTableTest, PrefetchBringsBlocksBackAheadOfTheirUse) {
  BlockTable& table = Open(BlockTable::MinimumBudget(spec_) + kBlock);
  for (uint32_t cluster = 0; cluster < 4; ++cluster) ASSERT_OK(Write(cluster, cluster));
  ASSERT_OK(Write(3, 3));
  ASSERT_TRUE(Eventually([&] { return table.GetStats().dirty_bytes <= kBlock; }));
  const std::vector<BlockId> wanted = {{1, 0}, {2, 2}};  // one is untouched
  for (int i = 0; i < 3; ++i) {  // the first may find used blocks everywhere
    table.Prefetch(wanted);
    absl::SleepFor(absl::Milliseconds(20));
  }
  const uint64_t reads = table.GetStats().disk_reads;
  EXPECT_GT(reads, 0u);
  EXPECT_EQ(Value(0), 0);
  ASSERT_OK(Write(0, 7, 0));
  EXPECT_EQ(table.GetStats().disk_reads, reads) << "neither the fetch nor the step read the disk";
}

TEST_F(BlockTableTest, ShutdownEndsAWaitingUpdate) {
  BlockTable& table = Open(BlockTable::MinimumBudget(spec_));
  const std::unique_lock slow(disk_.mu);
  ASSERT_OK(Write(0, 1));
  std::thread stop([&] {
    absl::SleepFor(absl::Milliseconds(30));
    table.Shutdown();
  });
  EXPECT_CODE(Write(1, 2), kUnavailable, "shutting down");
  stop.join();
  disk_.mu.unlock();
  table_.reset();
  disk_.mu.lock();
}

}  // namespace
}  // namespace membank
