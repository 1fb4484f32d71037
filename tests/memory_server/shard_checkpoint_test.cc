// Checkpoints, restarts, damage and versions, on RocksDB.
#include <gtest/gtest.h>

#include <fstream>

#include "common/base/bytes.h"
#include "common/base/file.h"
#include "memory_server/checked_json.h"
#include "memory_server/shard.h"
#include "tests/memory_server/shard_fixture.h"

namespace membank {
namespace {

namespace fs = std::filesystem;

class CheckpointTest : public ::testing::Test, protected ShardFixture {
 protected:
  CheckpointTest() : ShardFixture(DType::kF32, RocksDbStore::Open) {}
  void SetUp() override { Open(); }

  std::string Cuts(const std::string& name) const { return options.data_directory + "/checkpoints/" + name; }
  void OpenImage(const std::string& image) {
    options.data_directory = image;
    Open();
  }
  std::vector<std::pair<std::string, bool>> Listed() const {
    std::vector<std::pair<std::string, bool>> list;
    for (const CheckpointInfo& info : shard->ListCheckpoints()) list.emplace_back(info.id, info.committed);
    return list;
  }
  using List = std::vector<std::pair<std::string, bool>>;
};

// Changes one byte of the largest file below `directory` with this ending: in its data, or half-way, where a small table has its index.
enum class Place { kData, kMiddle };
std::string FlipByte(const std::string& directory, const std::string& ending, Place place = Place::kData) {
  fs::path largest;
  for (const auto& entry : fs::recursive_directory_iterator(directory))
    if (entry.is_regular_file() && entry.path().string().ends_with(ending) && (largest.empty() || entry.file_size() > fs::file_size(largest)))
      largest = entry.path();
  EXPECT_FALSE(largest.empty());
  std::fstream file(largest, std::ios::in | std::ios::out | std::ios::binary);
  const auto offset = static_cast<std::streamoff>(place == Place::kData ? 100 : fs::file_size(largest) / 2);
  file.seekg(offset);
  const char byte = static_cast<char>(file.get());
  file.seekp(offset);
  file.put(static_cast<char>(byte ^ 0x10));
  return largest;
}

TEST_F(CheckpointTest, ARestartGoesBackToTheLastCommittedCheckpoint) {
  ASSERT_OK(Begin(1));
  ASSERT_OK(Train(1, {{{1, 0}, 1}, {{2, 3}, 2}}));
  ASSERT_OK(Checkpoint("one"));
  ASSERT_OK(Train(2, {{{1, 0}, 10}, {{2, 4}, 20}}));
  ASSERT_OK(Checkpoint("two"));
  const auto at_two = AllPayloads();
  ASSERT_OK(Train(3, {{{1, 0}, 100}}));
  ASSERT_OK(shard->PrepareCheckpoint("three", 3));  // never committed
  Open();
  EXPECT_EQ(shard->Status().head_step, 2u);
  EXPECT_EQ(shard->Status().run_id, "r");
  EXPECT_EQ(AllPayloads(), at_two);
  EXPECT_EQ(shard->Read({2, 3})->version, 1u);
  EXPECT_EQ(Listed(), (List{{"one", true}, {"two", true}, {"three", false}}));
  EXPECT_CODE(shard->BeginRun({"r", 1, 1, 0, 3, OptimizerKind::kSgd}), kAborted, "fenced");
  ASSERT_OK(Begin(2));
  ASSERT_OK(Train(3, {{{1, 0}, 5}}));
  EXPECT_EQ(Count({1, 0}), 16);
}

TEST_F(CheckpointTest, FencesOutliveACrash) {
  ASSERT_OK(Begin(7));
  Open();
  EXPECT_EQ(shard->Status().head_step, 0u);
  EXPECT_CODE(Push({"r", 6, 1}, 0, {}), kAborted, "fenced by epoch 7");
  EXPECT_CODE(Push({"r", 7, 1}, 0, {}), kFailedPrecondition, "with an epoch above 7");
  EXPECT_CODE(Begin(7), kAborted, "begin a larger one");
  ASSERT_OK(Begin(8));
}

TEST_F(CheckpointTest, ResumeEqualsTheRunThatWasNeverInterrupted) {
  const auto gradients = [](uint64_t step) {
    return Contribution{{{1, static_cast<uint32_t>(step % 3)}, 0.1f * step}, {{2, static_cast<uint32_t>(step % 9)}, -0.3f}};
  };
  const ApplyParameters parameters{0.5f, 1e-2f, 0.1f};
  for (DType dtype : {DType::kF32, DType::kBF16}) {
    ShardFixture whole(dtype, RocksDbStore::Open), cut(dtype, RocksDbStore::Open);
    whole.Open();
    cut.Open();
    ASSERT_OK(whole.Begin(1, 1, 0, OptimizerKind::kAdamW));
    ASSERT_OK(cut.Begin(1, 1, 0, OptimizerKind::kAdamW));
    for (uint64_t step = 1; step <= 12; ++step) {
      ASSERT_OK(whole.Train(step, gradients(step), parameters));
      if (step == 6) ASSERT_OK(whole.Checkpoint("same"));
      if (step <= 8) ASSERT_OK(cut.Train(step, gradients(step), parameters));
      if (step == 3 || step == 6) ASSERT_OK(cut.Checkpoint("at-" + std::to_string(step)));
    }
    cut.Open();
    ASSERT_EQ(cut.shard->Status().head_step, 6u);
    ASSERT_OK(cut.Begin(2, 1, 0, OptimizerKind::kAdamW));
    for (uint64_t step = 7; step <= 12; ++step) ASSERT_OK(cut.Train(step, gradients(step), parameters));
    EXPECT_EQ(cut.AllPayloads(), whole.AllPayloads());
  }
}

TEST_F(CheckpointTest, PrepareCommitAndAbortMayBeRepeated) {
  ASSERT_OK(Begin(1));
  ASSERT_OK(Train(1, {{{1, 0}, 1}}));
  EXPECT_CODE(shard->PrepareCheckpoint("a", 2), kFailedPrecondition, "wants step 2, the head of server \"m0\" is at step 1");
  ASSERT_OK(shard->PrepareCheckpoint("a", 1));
  ASSERT_OK(shard->PrepareCheckpoint("a", 1));
  ASSERT_OK(shard->CommitCheckpoint("a"));
  ASSERT_OK(shard->CommitCheckpoint("a"));
  ASSERT_OK(shard->PrepareCheckpoint("a", 1));
  EXPECT_CODE(shard->AbortCheckpoint("a"), kFailedPrecondition, "is committed");
  EXPECT_CODE(shard->DeleteCheckpoint("a"), kFailedPrecondition, "last committed one");
  ASSERT_OK(shard->AbortCheckpoint("never"));
  ASSERT_OK(shard->DeleteCheckpoint("never"));
  EXPECT_CODE(shard->CommitCheckpoint("never"), kNotFound, "there are: a");
  ASSERT_OK(Train(2, {}));
  EXPECT_CODE(shard->PrepareCheckpoint("a", 2), kAlreadyExists, "choose another id");
  ASSERT_OK(shard->PrepareCheckpoint("b", 2));
  ASSERT_OK(shard->AbortCheckpoint("b"));
  EXPECT_EQ(Listed(), (List{{"a", true}}));
  for (const char* bad : {"", ".hidden", "a/b", "..", "a b"}) {
    EXPECT_CODE(shard->PrepareCheckpoint(bad, 2), kInvalidArgument, "no valid name");
    EXPECT_CODE(shard->RestoreCheckpoint(bad), kInvalidArgument, "no valid name");
  }
}

TEST_F(CheckpointTest, OldCheckpointsAreRemovedAtCommit) {
  ASSERT_OK(Begin(1));
  for (uint64_t step = 1; step <= 4; ++step) {
    ASSERT_OK(Train(step, {{{1, 0}, 1}}));
    if (step == 2) ASSERT_OK(shard->PrepareCheckpoint("given-up", 2));
    else ASSERT_OK(Checkpoint("c" + std::to_string(step)));
  }
  EXPECT_EQ(Listed(), (List{{"c3", true}, {"c4", true}}));
  EXPECT_FALSE(fs::exists(Cuts("c1")));
  EXPECT_FALSE(fs::exists(Cuts("given-up")));
  ASSERT_OK(shard->DeleteCheckpoint("c3"));
  EXPECT_EQ(Listed(), (List{{"c4", true}}));
}

TEST_F(CheckpointTest, RestoreGoesBackDropsWhatCameAfterAndIsTheNewRestartPoint) {
  ASSERT_OK(Begin(1));
  ASSERT_OK(Train(1, {{{1, 0}, 1}}));
  ASSERT_OK(Checkpoint("a"));
  const auto at_a = AllPayloads();
  ASSERT_OK(Train(2, {{{1, 0}, 10}, {{1, 1}, 10}}));
  ASSERT_OK(Checkpoint("b"));
  ASSERT_OK(Push(Id(3), 0, {{{1, 0}, 100}}));
  ASSERT_OK(shard->RestoreCheckpoint("a"));
  EXPECT_EQ(shard->Status().head_step, 1u);
  EXPECT_EQ(AllPayloads(), at_a);
  EXPECT_CODE(PrepareAndApply(3), kFailedPrecondition, "no run is active");
  Open();
  EXPECT_EQ(AllPayloads(), at_a);
  ASSERT_OK(Begin(2));
  ASSERT_OK(Train(2, {{{1, 1}, 7}}));
  ASSERT_OK(Checkpoint("b"));  // the id of the history that was given up
  Open();
  EXPECT_EQ(Count({1, 0}), 1);
  EXPECT_EQ(Count({1, 1}), 7);
  EXPECT_CODE(shard->RestoreCheckpoint("c"), kNotFound, "there are: a, b");
}

TEST_F(CheckpointTest, APreparedCutCanBeRestoredWhereTheCommitGotLost) {
  ASSERT_OK(Begin(1));
  ASSERT_OK(Train(1, {{{1, 0}, 1}}));
  ASSERT_OK(shard->PrepareCheckpoint("p", 1));
  Open();
  EXPECT_EQ(shard->Status().head_step, 0u);
  ASSERT_OK(shard->RestoreCheckpoint("p"));
  EXPECT_EQ(Count({1, 0}), 1);
  EXPECT_EQ(Listed(), (List{{"p", true}}));
}

// Every image is what kill -9 leaves at that moment; each must come up with the last committed checkpoint, whole.
TEST_F(CheckpointTest, ACrashAtAnyPointLeavesTheLastCommittedCheckpoint) {
  ASSERT_OK(Begin(1));
  ASSERT_OK(Train(1, {{{1, 0}, 1}, {{2, 2}, 1}}));
  ASSERT_OK(Checkpoint("a"));
  const auto at_a = AllPayloads();
  ASSERT_OK(Train(2, {{{1, 0}, 1}, {{2, 5}, 1}}));
  std::vector<std::string> images = {CrashImage()};  // before prepare
  ASSERT_OK(shard->PrepareCheckpoint("b", 2));
  images.push_back(CrashImage());                    // prepared, not committed
  images.push_back(CrashImage());                    // cut while it was built: no manifest, name not final
  fs::rename(images.back() + "/checkpoints/b", images.back() + "/checkpoints/.new-b");
  fs::remove(images.back() + "/checkpoints/.new-b/manifest.json");
  images.push_back(CrashImage());                    // the same without the building name
  fs::remove(images.back() + "/checkpoints/b/manifest.json");
  images.push_back(CrashImage());                    // commit mark written but not renamed
  fs::copy_file(Cuts("a") + "/committed.json", images.back() + "/checkpoints/b/committed.json.tmp");
  images.push_back(CrashImage());                    // abort: renamed, half deleted
  fs::rename(images.back() + "/checkpoints/b", images.back() + "/checkpoints/.trash-b");
  fs::remove_all(images.back() + "/checkpoints/.trash-b/weights");
  images.push_back(CrashImage());                    // head stores gone
  fs::remove_all(images.back() + "/head");
  ASSERT_OK(shard->CommitCheckpoint("b"));
  const auto at_b = AllPayloads();
  const std::string committed = CrashImage(), collecting = CrashImage();
  fs::rename(collecting + "/checkpoints/a", collecting + "/checkpoints/.trash-a");

  for (const std::string& image : images) {
    OpenImage(image);
    EXPECT_EQ(shard->Status().head_step, 1u) << image;
    EXPECT_EQ(AllPayloads(), at_a) << image;
    for (const auto& entry : fs::directory_iterator(image + "/checkpoints")) EXPECT_NE(entry.path().filename().string()[0], '.') << entry;
    ASSERT_OK(Begin(5));
    ASSERT_OK(Train(2, {{{1, 0}, 1}}));
    ASSERT_OK(Checkpoint("b"));
  }
  for (const std::string& image : {committed, collecting}) {
    OpenImage(image);
    EXPECT_EQ(AllPayloads(), at_b) << image;
  }
}

TEST_F(CheckpointTest, DamageIsReportedAndNothingIsServed) {
  ASSERT_OK(Begin(1, 1, 0, OptimizerKind::kAdamW));
  ASSERT_OK(Train(1, {{{1, 0}, 1}, {{2, 2}, 1}}));
  ASSERT_OK(Checkpoint("a"));
  const auto before = AllPayloads();
  for (const char* store : {"weights", "state"}) {
    for (Place place : {Place::kData, Place::kMiddle}) {
      const std::string image = CrashImage();
      const std::string file = FlipByte(image + "/checkpoints/a/" + store, ".sst", place);
      ShardFixture damaged(DType::kF32, RocksDbStore::Open);
      damaged.options.data_directory = image;
      EXPECT_CODE(damaged.TryOpen(), kDataLoss, fs::path(file).filename().string());
      EXPECT_CODE(damaged.TryOpen(), kDataLoss, "checkpoint a in");
    }
  }
  for (const char* name : {"manifest.json", "committed.json"}) {
    const std::string image = CrashImage();
    ASSERT_OK(WriteFileAtomic(image + "/checkpoints/a/" + name, "{\"seq"));
    ShardFixture damaged(DType::kF32, RocksDbStore::Open);
    damaged.options.data_directory = image;
    EXPECT_CODE(damaged.TryOpen(), kDataLoss, name);
  }
  // Another number that looks as good: the files carry checksums of themselves.
  for (const char* name : {"/checkpoints/a/manifest.json", "/checkpoints/a/committed.json", "/runs.json"}) {
    const std::string image = CrashImage();
    std::string text = *ReadFile(image + name);
    char& digit = text[text.find_first_of("0123456789", text.find(':'))];
    digit = static_cast<char>(digit ^ 1);
    ASSERT_OK(WriteFileAtomic(image + name, text));
    ShardFixture damaged(DType::kF32, RocksDbStore::Open);
    damaged.options.data_directory = image;
    EXPECT_CODE(damaged.TryOpen(), kDataLoss, std::string(name) + " is damaged: its CRC32C is");
  }
  const std::string image = CrashImage();
  fs::remove(image + "/checkpoints/a/manifest.json");
  ShardFixture damaged(DType::kF32, RocksDbStore::Open);
  damaged.options.data_directory = image;
  EXPECT_CODE(damaged.TryOpen(), kDataLoss, "its manifest is missing");

  FlipByte(Cuts("a") + "/weights", ".sst");
  EXPECT_CODE(shard->RestoreCheckpoint("a"), kDataLoss, "checkpoint a in");
  EXPECT_EQ(AllPayloads(), before) << "a failed restore changes nothing";
}

// Below RocksDB's own checksums: bytes that the store serves without complaint but that are not what was written.
TEST(CheckpointDigest, OurOwnChecksumsNameBlockAndFile) {
  for (const bool drop_block : {false, true}) {
    ShardFixture fixture;
    fixture.Open();
    ASSERT_OK(fixture.Begin(1));
    ASSERT_OK(fixture.Train(1, {{{1, 0}, 1}, {{2, 2}, 1}}));
    ASSERT_OK(fixture.Checkpoint("a"));
    fixture.shard.reset();
    const std::string directory = fixture.options.data_directory + "/checkpoints/a/weights";
    auto store = *InMemoryBlockStore::Open(directory, StoreAccess::kReadWrite);
    std::string key, value;
    ASSERT_OK(store->Scan("b", [&](std::string_view k, absl::Span<const uint8_t> v) {
      key = k;
      value.assign(v.begin(), v.end());
      return absl::OkStatus();
    }));
    value.back() ^= 1;
    ASSERT_OK(drop_block ? store->Delete(key) : store->Put(key, AsBytes(value)));
    ASSERT_OK(store->Flush());
    EXPECT_CODE(fixture.TryOpen(), kDataLoss, directory);
    EXPECT_CODE(fixture.TryOpen(), kDataLoss, drop_block ? "holds 1 blocks" : "payload of block 2/2");
  }
}

TEST_F(CheckpointTest, ADirectoryBelongsToOneBankAndOneServerAtATime) {
  auto map = SlotMap::Striped({{"m0", "a:1"}, {"m1", "a:2"}});
  EXPECT_CODE(Shard::Open(spec, *map, options), kFailedPrecondition, "in use by another memory server");
  shard.reset();
  BankSpec other = spec;
  other.seed = 43;
  const absl::Status mismatch = Shard::Open(other, *map, options).status();
  EXPECT_CODE(mismatch, kFailedPrecondition, spec.Hash());
  EXPECT_CODE(mismatch, kFailedPrecondition, other.Hash());
  ShardOptions as_m1 = options;
  as_m1.server_id = "m1";
  EXPECT_CODE(Shard::Open(spec, *map, as_m1), kFailedPrecondition, "belongs to server \"m0\", not to \"m1\"");
  Open();
}

TEST_F(CheckpointTest, PublishedVersionsNeverChange) {
  ASSERT_OK(Begin(1));
  ASSERT_OK(Train(1, {{{1, 0}, 1}}));
  ASSERT_OK(shard->PrepareCheckpoint("a", 1));
  EXPECT_CODE(shard->Publish("a", "v1"), kFailedPrecondition, "not committed");
  ASSERT_OK(shard->CommitCheckpoint("a"));
  ASSERT_OK(shard->Publish("a", "v1"));
  ASSERT_OK(shard->Publish("a", "v1"));
  EXPECT_CODE(shard->Publish("none", "v2"), kNotFound, "there are: a");
  EXPECT_CODE(shard->Publish("a", "../v"), kInvalidArgument, "no valid name");
  EXPECT_CODE(shard->ReadVersion("v9", {1, 0}), kNotFound, "published: v1");
  const auto published = AllPayloads();
  for (uint64_t step = 2; step <= 4; ++step) {
    ASSERT_OK(Train(step, {{{1, 0}, 1}, {{2, 0}, 1}}));
    ASSERT_OK(Checkpoint("c" + std::to_string(step)));
  }
  EXPECT_FALSE(fs::exists(Cuts("a"))) << "the checkpoint is gone, its version stays";
  EXPECT_CODE(shard->Publish("c4", "v1"), kAlreadyExists, "versions never change");
  ASSERT_OK(shard->Publish("c4", "v2"));
  EXPECT_TRUE(shard->ReadVersion("v2", {2, 0}, -1, ReadFrom::kRam)->elsewhere);
  const SharedBuffer from_disk = shard->ReadVersion("v2", {2, 0})->payload;
  EXPECT_EQ(shard->ReadVersion("v2", {2, 0}, -1, ReadFrom::kRam)->payload, from_disk) << "kept in RAM from then on";
  for (int round = 0; round < 2; ++round) {
    std::vector<std::vector<uint8_t>> read;
    for (BlockId id : AllBlocks()) read.push_back(Bytes(*shard->ReadVersion("v1", id)));
    EXPECT_EQ(read, published);
    EXPECT_EQ(shard->ReadVersion("v1", {1, 0})->version, 1u);
    EXPECT_EQ(shard->ReadVersion("v2", {1, 0})->version, 4u);
    EXPECT_TRUE(shard->ReadVersion("v1", {1, 0}, 1)->unchanged);
    EXPECT_TRUE(shard->ReadVersion("v1", {2, 8}, 0)->unchanged);
    EXPECT_EQ(shard->Status().versions, (std::vector<BankVersion>{{"v1"}, {"v2"}}));
    Open();  // versions survive a restart
  }
  for (Place place : {Place::kData, Place::kMiddle}) {
    const std::string image = CrashImage();
    FlipByte(image + "/versions/v1", ".sst", place);
    OpenImage(image);
    ASSERT_NE(shard, nullptr);
    EXPECT_CODE(shard->ReadVersion("v1", {1, 0}), kDataLoss, "version v1");
    EXPECT_TRUE(shard->ReadVersion("v2", {1, 0}).ok());
  }
}

// What int8 makes of a payload.
std::vector<uint8_t> AsInt8(const BankSpec& spec, uint32_t level, const std::vector<uint8_t>& payload) {
  std::vector<uint8_t> out(PayloadBytes(spec, level, PayloadType::kI8Rows));
  EXPECT_TRUE(QuantisePayload(spec, level, payload, absl::MakeSpan(out)).ok());
  return out;
}

TEST_F(CheckpointTest, AVersionAsInt8HoldsEveryBlockInTheSmallerForm) {
  ASSERT_OK(Begin(1));
  ASSERT_OK(Train(1, {{{1, 0}, 1}, {{2, 4}, 3}}));
  ASSERT_OK(Checkpoint("a"));
  ASSERT_OK(shard->Publish("a", "v1"));
  ASSERT_OK(shard->Publish("a", "v1-int8", PayloadType::kI8Rows));
  ASSERT_OK(shard->Publish("a", "v1-int8", PayloadType::kI8Rows));  // repeated
  EXPECT_CODE(shard->Publish("a", "v1-int8"), kAlreadyExists, "as int8, versions never change");
  EXPECT_CODE(shard->Publish("a", "v1", PayloadType::kI8Rows), kAlreadyExists, "versions never change");
  ASSERT_OK(Train(2, {{{1, 0}, 1}}));
  ASSERT_OK(Checkpoint("b"));
  EXPECT_CODE(shard->Publish("b", "v1-int8", PayloadType::kI8Rows), kAlreadyExists, "was published from checkpoint a at step 1 as int8");
  for (int round = 0; round < 2; ++round) {
    for (const BlockId id : AllBlocks()) {  // untouched ones, too
      const auto whole = shard->ReadVersion("v1", id), smaller = shard->ReadVersion("v1-int8", id);
      ASSERT_OK(smaller);
      EXPECT_EQ(whole->type, PayloadType::kBank);
      EXPECT_EQ(smaller->type, PayloadType::kI8Rows);
      EXPECT_EQ(smaller->version, whole->version);
      EXPECT_EQ(Bytes(*smaller), AsInt8(spec, id.level, Bytes(*whole))) << ToString(id);
      EXPECT_EQ(smaller->crc32c, Crc32c(smaller->payload->data(), smaller->payload->size()));
    }
    EXPECT_TRUE(shard->ReadVersion("v1-int8", {1, 0}, 1)->unchanged);
    EXPECT_TRUE(shard->ReadVersion("v1-int8", {2, 8}, 0)->unchanged);
    EXPECT_EQ(shard->ListVersions(), (std::vector<BankVersion>{{"v1"}, {"v1-int8", PayloadType::kI8Rows}}));
    Open();
  }
  const std::string image = CrashImage();
  FlipByte(image + "/versions/v1-int8", ".sst", Place::kData);
  OpenImage(image);
  EXPECT_CODE(shard->ReadVersion("v1-int8", {1, 0}), kDataLoss, "version v1-int8");
}

TEST(CheckpointInt8, IsRefusedWhereItIsNotSmaller) {
  ShardFixture fixture;
  BankSpec narrow = SmallSpec(DType::kBF16);
  narrow.hidden = 4;
  const auto shard = Shard::Open(narrow, *SlotMap::Striped({{"m0", "localhost:1"}}), fixture.options);
  ASSERT_OK(shard);
  ASSERT_OK((*shard)->PrepareCheckpoint("a", 0));
  ASSERT_OK((*shard)->CommitCheckpoint("a"));
  EXPECT_CODE((*shard)->Publish("a", "v1", PayloadType::kI8Rows), kInvalidArgument, "a scale per row of 4 elements is not smaller than BF16");
}

TEST_F(CheckpointTest, AFormOfALaterBuildIsNotServed) {
  ASSERT_OK(Begin(1));
  ASSERT_OK(Train(1, {{{1, 0}, 1}}));
  ASSERT_OK(Checkpoint("a"));
  ASSERT_OK(shard->Publish("a", "v1", PayloadType::kI8Rows));
  const std::string manifest = options.data_directory + "/versions/v1/manifest.json";
  nlohmann::json json = *ReadCheckedJson(manifest);
  json["payload"] = "I4_ROWS";
  ASSERT_OK(WriteCheckedJson(manifest, json));
  Open();
  EXPECT_CODE(shard->ReadVersion("v1", {1, 0}), kFailedPrecondition, "payloads of the form \"I4_ROWS\"");
  EXPECT_TRUE(shard->ListVersions().empty());
}

// A store whose writes fail while the disk is "full".
class FullDiskStore : public BlockStore {
 public:
  FullDiskStore(std::unique_ptr<BlockStore> base, const bool* full) : base_(std::move(base)), full_(full) {}
  absl::Status Put(std::string_view key, absl::Span<const uint8_t> value) override { return *full_ ? Full() : base_->Put(key, value); }
  absl::Status Delete(std::string_view key) override { return *full_ ? Full() : base_->Delete(key); }
  absl::Status Apply(absl::Span<const Write> batch) override { return *full_ ? Full() : base_->Apply(batch); }
  absl::Status Get(std::string_view key, const std::function<void(absl::Span<const uint8_t>)>& visit) override { return base_->Get(key, visit); }
  absl::Status Scan(std::string_view prefix, const Visitor& visit) override { return base_->Scan(prefix, visit); }
  absl::Status Seek(std::string_view key, const Visitor& visit) override { return base_->Seek(key, visit); }
  absl::Status Erase(std::string_view first, std::string_view last) override { return *full_ ? Full() : base_->Erase(first, last); }
  absl::Status Verify() override { return base_->Verify(); }
  absl::Status Flush() override { return *full_ ? Full() : base_->Flush(); }
  absl::Status Cut(const std::string& directory) override { return *full_ ? Full() : base_->Cut(directory); }

 private:
  static absl::Status Full() { return absl::ResourceExhaustedError("no space left on device"); }
  const std::unique_ptr<BlockStore> base_;
  const bool* const full_;
};

TEST_F(CheckpointTest, AFailedWriteStopsCheckpointsOnlyAndIsOverWithoutARestart) {
  bool full = false;
  options.open_store = [&](const std::string& directory, StoreAccess access) -> absl::StatusOr<std::unique_ptr<BlockStore>> {
    auto base = RocksDbStore::Open(directory, access);
    if (!base.ok()) return base.status();
    return std::make_unique<FullDiskStore>(*std::move(base), &full);
  };
  Open();
  ASSERT_OK(Begin(1));
  ASSERT_OK(Train(1, {{{1, 0}, 1}, {{2, 0}, 1}}));
  ASSERT_OK(Checkpoint("a"));
  ASSERT_OK(Train(2, {{{1, 0}, 1}}));
  full = true;
  for (int i = 0; i < 3; ++i) EXPECT_CODE(shard->PrepareCheckpoint("b", 2), kResourceExhausted, "no space left");
  EXPECT_EQ(Count({1, 0}), 2);
  ASSERT_OK(Train(3, {{{1, 0}, 1}}));
  EXPECT_CODE(shard->Publish("a", "v1", PayloadType::kI8Rows), kResourceExhausted, "no space left");
  EXPECT_TRUE(fs::is_empty(options.data_directory + "/versions")) << "nothing is left that would need the space";
  full = false;
  ASSERT_OK(shard->Publish("a", "v1", PayloadType::kI8Rows));
  ASSERT_OK(Checkpoint("c"));
  Open();
  EXPECT_EQ(Count({1, 0}), 3);
  EXPECT_EQ(Count({2, 0}), 1) << "a block that was clean before the failure is in the new store too";
}

}  // namespace
}  // namespace membank
