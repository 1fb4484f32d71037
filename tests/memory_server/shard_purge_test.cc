// After a purge no file of the server holds the prefix's bytes (promise P6), and everything else is as it was.
#include <fstream>
#include <iterator>

#include "gmock/gmock.h"
#include "memory_server/block_record.h"
#include "memory_server/checked_json.h"
#include "tests/memory_server/shard_fixture.h"

namespace membank {
namespace {

namespace fs = std::filesystem;

constexpr size_t kWindow = 64;
constexpr BlockId kGone[] = {{1, 1}, {2, 3}, {2, 5}}, kKept[] = {{1, 0}, {1, 2}, {2, 2}, {2, 6}, {1, 3}};

struct Case {
  const char* name;
  Durability durability;
  uint64_t memory_budget_bytes;
};

class PurgeTest : public testing::TestWithParam<Case>, protected ShardFixture {
 protected:
  PurgeTest() : ShardFixture(DType::kF32, RocksDbStore::Open) {
    options.durability = GetParam().durability;
    options.memory_budget_bytes = GetParam().memory_budget_bytes;
  }

  // AdamW moves by the rate whatever the gradient is: the sign tells blocks that go from those that stay.
  absl::Status TrainAll(uint64_t step) {
    Contribution all;
    for (const BlockId id : kGone) all.emplace_back(id, 1.2345f);
    for (const BlockId id : kKept) all.emplace_back(id, -2.71828f);
    return Train(step, all, {1, 0.125f, 0});
  }

  std::vector<uint8_t> Payload(BlockId id, const std::string& version = "") {
    const auto read = version.empty() ? shard->Read(id) : shard->ReadVersion(version, id);
    EXPECT_TRUE(read.ok()) << read.status();
    return read.ok() ? Bytes(*read) : std::vector<uint8_t>();
  }
  std::vector<std::vector<uint8_t>> KeptPayloads(const std::string& version = "") {
    std::vector<std::vector<uint8_t>> payloads;
    for (const BlockId id : kKept) payloads.push_back(Payload(id, version));
    return payloads;
  }

  // What must go: payloads of the head, and records of a checkpoint.
  void CollectHead() {
    for (const BlockId id : kGone) secrets_.push_back(Payload(id));
  }
  void CollectCheckpoint(const std::string& checkpoint) {
    for (const char* part : {"/weights", "/state"}) {
      const auto store = RocksDbStore::Open(options.data_directory + "/checkpoints/" + checkpoint + part, StoreAccess::kReadOnly);
      ASSERT_OK(store);
      for (const BlockId id : kGone) {
        ASSERT_OK((*store)->Get(BlockKey(id), [&](absl::Span<const uint8_t> value) { secrets_.emplace_back(value.begin() + 48, value.end()); }));
      }
    }
  }
  // How many of the secrets' windows of 64 bytes are in some file below the data directory.
  int WindowsOnDisk() const {
    std::string all;
    for (const auto& entry : fs::recursive_directory_iterator(options.data_directory)) {
      if (!entry.is_regular_file()) continue;
      std::ifstream in(entry.path(), std::ios::binary);
      all.append(std::istreambuf_iterator<char>(in), {});
    }
    int found = 0;
    for (const std::vector<uint8_t>& secret : secrets_)
      for (size_t at = 0; at + kWindow <= secret.size(); at += kWindow)
        found += all.find(std::string_view(reinterpret_cast<const char*>(secret.data()) + at, kWindow)) != std::string::npos;
    return found;
  }
  // Files of the data directory that have no name any more but are held open or mapped by this process.
  std::vector<std::string> HeldFiles() const {
    std::vector<std::string> held;
    for (const auto& entry : fs::directory_iterator("/proc/self/fd")) {
      std::error_code gone;
      held.push_back(fs::read_symlink(entry.path(), gone));
    }
    std::ifstream maps("/proc/self/maps");
    for (std::string line; std::getline(maps, line);) held.push_back(line);
    std::erase_if(held, [&](const std::string& line) {
      return line.find(options.data_directory) == std::string::npos || !line.ends_with(" (deleted)");
    });
    return held;
  }
  void ExpectGone() {
    EXPECT_EQ(WindowsOnDisk(), 0);
    EXPECT_THAT(HeldFiles(), testing::IsEmpty());
    for (const BlockId id : kGone) EXPECT_EQ(shard->Read(id)->version, 0u) << ToString(id) << " is as if never trained";
    for (const BankVersion& version : shard->ListVersions())
      for (const BlockId id : kGone) EXPECT_EQ(shard->ReadVersion(version.name, id)->version, 0u) << ToString(id);
    for (const CheckpointInfo& info : shard->ListCheckpoints()) EXPECT_THAT(*shard->VerifyCheckpoint(info.id), testing::IsEmpty()) << info.id;
    EXPECT_FALSE(fs::exists(options.data_directory + "/purge.json"));
  }

  std::vector<std::vector<uint8_t>> secrets_;
};

TEST_P(PurgeTest, LeavesNoBytesBehindAndEverythingElseAsItWas) {
  Open();
  ASSERT_OK(Begin(1, 1, 0, OptimizerKind::kAdamW));
  ASSERT_OK(TrainAll(1));
  CollectHead();
  ASSERT_OK(Checkpoint("a"));
  ASSERT_NO_FATAL_FAILURE(CollectCheckpoint("a"));
  ASSERT_OK(shard->Publish("a", "v1"));
  ASSERT_OK(shard->Publish("a", "v1-int8", PayloadType::kI8Rows));
  for (const BlockId id : kGone) secrets_.push_back(Payload(id, "v1-int8"));
  ASSERT_OK(TrainAll(2));
  CollectHead();
  ASSERT_OK(Checkpoint("b"));
  ASSERT_NO_FATAL_FAILURE(CollectCheckpoint("b"));
  ASSERT_OK(TrainAll(3));
  CollectHead();
  ASSERT_OK(shard->PrepareCheckpoint("c", 3));
  ASSERT_NO_FATAL_FAILURE(CollectCheckpoint("c"));
  ASSERT_OK(TrainAll(4));  // in memory and, with durability step, in the log only
  CollectHead();
  if (GetParam().durability == Durability::kStep) {
    const Buffer gradient = GradientBytes(kGone[0], 1.2345f);
    secrets_.emplace_back(gradient.data(), gradient.data() + gradient.size());
  }
  ASSERT_OK(shard->ReadVersion("v1", kGone[0]));       // in the cache
  ASSERT_OK(shard->SnapshotCheckpoint("d", 4));        // on its way
  ASSERT_OK(shard->ReadCheckpoint("b", {}, 10, [](const auto&, const auto&) {}));  // being copied
  ASSERT_OK(Push(Id(5), 0, {{kGone[0], 5}, {kKept[0], 5}}));
  ASSERT_GT(WindowsOnDisk(), 100) << "the bytes are there before";
  const auto head = KeptPayloads(), v1 = KeptPayloads("v1");

  const auto result = shard->Purge({1, 1});
  ASSERT_OK(result);
  EXPECT_EQ(result->blocks, std::size(kGone));
  EXPECT_EQ(result->cuts, 5u);  // checkpoints a, b, c and versions v1, v1-int8
  ExpectGone();
  EXPECT_EQ(KeptPayloads(), head);
  EXPECT_EQ(KeptPayloads("v1"), v1);
  EXPECT_EQ(shard->Status().head_step, 4u);
  EXPECT_EQ(shard->ListCheckpoints().size(), 3u);
  EXPECT_EQ(shard->Status().touched_blocks, std::size(kKept));
  EXPECT_FALSE(shard->Read(kGone[0], 4)->unchanged) << "whoever holds the purged version gets the untouched one";
  EXPECT_FALSE(shard->ReadVersion("v1", kGone[0], 1)->unchanged);

  EXPECT_CODE(shard->PrepareStep(Id(5), Soon()), kFailedPrecondition, "since its start, restore or purge");
  ASSERT_OK(Begin(2, 1, 0, OptimizerKind::kAdamW));  // training goes on
  ASSERT_OK(Train(5, {{kKept[1], 1}}));
  const auto later = KeptPayloads();
  Open();
  ExpectGone();
  if (GetParam().durability == Durability::kStep) {
    EXPECT_EQ(KeptPayloads(), later) << "replayed";
    ASSERT_OK(shard->Rewind(4));
    EXPECT_EQ(KeptPayloads(), head);
    ExpectGone();
  }
  ASSERT_OK(shard->RestoreCheckpoint("c"));
  ExpectGone();
  EXPECT_EQ(shard->Read(kKept[0])->version, 3u);
  ASSERT_OK(Begin(3, 1, 0, OptimizerKind::kAdamW));
  ASSERT_OK(TrainAll(4));
  EXPECT_EQ(shard->Read(kGone[0])->version, 4u) << "trained again, from the start";
  ASSERT_OK(Checkpoint("e"));
  Open();
  EXPECT_EQ(shard->Read(kGone[0])->version, 4u) << "a purge that is over does not come back";
}

TEST_P(PurgeTest, WhatFailedIsFinishedByTheNextStart) {
  Open();
  ASSERT_OK(Begin(1, 1, 0, OptimizerKind::kAdamW));
  ASSERT_OK(TrainAll(1));
  ASSERT_OK(Checkpoint("a"));
  ASSERT_NO_FATAL_FAILURE(CollectCheckpoint("a"));
  ASSERT_OK(TrainAll(2));
  CollectHead();
  const auto head = KeptPayloads();
  const fs::path in_the_way = options.data_directory + "/checkpoints/a/manifest.json.tmp";
  fs::create_directory(in_the_way);
  EXPECT_CODE(shard->Purge({1, 1}), kFailedPrecondition, "not complete on server \"m0\", repeat it");
  EXPECT_EQ(KeptPayloads(), head);
  EXPECT_EQ(shard->Read(kGone[0])->version, 0u);
  EXPECT_GT(WindowsOnDisk(), 0);
  EXPECT_FALSE(TryOpen().ok()) << "nothing is served before it is finished";
  fs::remove(in_the_way);
  Open();
  ExpectGone();
  if (GetParam().durability == Durability::kStep) {
    EXPECT_EQ(KeptPayloads(), head);
  }
  const auto again = shard->Purge({1, 1});
  ASSERT_OK(again);
  EXPECT_EQ(again->blocks, 0u);
}

TEST_P(PurgeTest, DamageStaysRecordedAndUnreadableVersionsGo) {
  Open();
  ASSERT_OK(Begin(1, 1, 0, OptimizerKind::kAdamW));
  ASSERT_OK(TrainAll(1));
  ASSERT_OK(Checkpoint("a"));
  ASSERT_NO_FATAL_FAILURE(CollectCheckpoint("a"));
  ASSERT_OK(shard->Publish("a", "v1"));
  ASSERT_OK(shard->PrepareCheckpoint("b", 1));
  shard.reset();
  const std::string manifest = options.data_directory + "/checkpoints/b/manifest.json";
  nlohmann::json json = *ReadCheckedJson(manifest);
  json["blocks"] = 9;
  ASSERT_OK(WriteCheckedJson(manifest, json));
  fs::resize_file(options.data_directory + "/versions/v1/manifest.json", 10);
  Open();
  ASSERT_OK(shard->Purge({1, 1}));
  EXPECT_EQ(WindowsOnDisk(), 0);
  EXPECT_THAT(*shard->VerifyCheckpoint("a"), testing::IsEmpty());
  EXPECT_THAT(*shard->VerifyCheckpoint("b"), testing::ElementsAre(testing::HasSubstr("the manifest says 9 blocks")));
  EXPECT_CODE(shard->ReadVersion("v1", kKept[0]), kNotFound, "v1");
}

TEST_P(PurgeTest, TheRootIsEverythingAndUnknownPrefixesAreRefused) {
  Open();
  ASSERT_OK(Begin(1));
  ASSERT_OK(TrainAll(1));
  ASSERT_OK(Checkpoint("a"));
  EXPECT_CODE(shard->Purge({3, 0}), kInvalidArgument, "not in the tree");
  ASSERT_OK(Train(2, {{kKept[0], 1}}));  // nothing was ended by it
  const auto result = shard->Purge({0, 0});
  ASSERT_OK(result);
  EXPECT_EQ(result->blocks, std::size(kGone) + std::size(kKept));
  EXPECT_EQ(shard->Status().touched_blocks, 0u);
  Open();
  EXPECT_EQ(shard->Status().touched_blocks, 0u);
}

INSTANTIATE_TEST_SUITE_P(Classes, PurgeTest,
                         testing::Values(Case{"Checkpoint", Durability::kCheckpoint, 0}, Case{"Step", Durability::kStep, 0},
                                         Case{"StepAndSpill", Durability::kStep, 8000}),
                         [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace membank
