// The scrub over real RocksDB stores: clean stores are clean, a flipped byte is found and its file named, the rate limit holds.
#include "memory_server/scrub.h"

#include <filesystem>
#include <fstream>
#include <random>

#include "absl/time/clock.h"
#include "common/base/bytes.h"
#include "common/base/crc32c.h"
#include "common/base/file.h"
#include "common/base/metrics.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "memory_server/block_record.h"
#include "memory_server/rocksdb_store.h"

namespace membank {
namespace {

namespace fs = std::filesystem;

BankSpec Spec() {
  BankSpec spec;
  spec.bank_id = "b";
  spec.fan_out = 4;
  spec.widths = {64};
  spec.layers = 2;
  spec.hidden = 32;
  spec.dtype = DType::kF32;
  spec.anchor_fingerprint = spec.tree_fingerprint = "f";
  return spec;
}

class ScrubTest : public testing::Test {
 protected:
  void SetUp() override {
    std::string name = testing::TempDir() + "/membank-scrub-XXXXXX";
    directory_ = mkdtemp(name.data());
    Open();
    auto head = store_->OpenHead(std::nullopt);
    ASSERT_TRUE(head.ok()) << head.status();
    std::mt19937 random(3);
    for (uint32_t cluster = 0; cluster < 4; ++cluster) {
      std::vector<uint8_t> payload(Spec().BlockBytes(1));
      for (uint8_t& byte : payload) byte = static_cast<uint8_t>(random());
      const WeightsRecord weights{1, Crc32c(payload.data(), payload.size()), payload};
      const std::string header = EncodeWeightsHeader(weights), state = EncodeStateHeader({1, 1, payload, {}, {}});
      ASSERT_TRUE((*head)->weights->Apply({BlockStore::Write{BlockKey({1, cluster}), {AsBytes(header), payload}}}).ok());
      ASSERT_TRUE((*head)->state->Apply({BlockStore::Write{BlockKey({1, cluster}), {AsBytes(state), payload}}}).ok());
      payloads_.push_back(std::move(payload));
    }
    ASSERT_TRUE(store_->Prepare("c", {}, {}, {}, **head).ok());
    ASSERT_TRUE(store_->Commit("c").ok());
  }
  void TearDown() override {
    store_.reset();
    fs::remove_all(directory_);
  }

  void Open() {
    auto store = CheckpointStore::Open(directory_, "hash", RocksDbStore::Open, 2);
    ASSERT_TRUE(store.ok()) << store.status();
    store_ = *std::move(store);
  }

  ScrubResult Run() {
    return Scrub(*store_, Spec(), [](uint64_t) { return true; });
  }

  // Flips one bit of the payload of `cluster` where it lies in a file below `part`.
  bool Flip(const std::string& part, uint32_t cluster, size_t at) {
    const std::string needle(payloads_[cluster].begin(), payloads_[cluster].begin() + 256);
    for (const auto& entry : fs::recursive_directory_iterator(directory_ + part)) {
      if (!entry.is_regular_file()) continue;
      const std::string contents = *ReadFile(entry.path());
      const size_t found = contents.find(needle);
      if (found == std::string::npos) continue;
      std::fstream file(entry.path(), std::ios::in | std::ios::out | std::ios::binary);
      file.seekp(static_cast<std::streamoff>(found + at));
      file.put(static_cast<char>(contents[found + at] ^ 0x10));
      return true;
    }
    return false;
  }

  std::string directory_;
  std::unique_ptr<CheckpointStore> store_;
  std::vector<std::vector<uint8_t>> payloads_, smaller_;  // of the checkpoint, of an int8 version
};

TEST_F(ScrubTest, CleanStoresAreClean) {
  ASSERT_TRUE(store_->Publish("c", "v").ok());
  const ScrubResult result = Run();
  EXPECT_EQ(result.records, 12u);  // payloads and states of the checkpoint, payloads of the version
  EXPECT_EQ(result.damaged, 0u);
  EXPECT_TRUE(result.whole);
}

TEST_F(ScrubTest, AFlippedBitIsFoundAndNamed) {
  std::mt19937 random(9);
  for (const char* part : {"/checkpoints/c/weights", "/checkpoints/c/state"}) {
    const size_t at = random() % payloads_[2].size();
    ASSERT_TRUE(Flip(part, 2, at));
    const ScrubResult result = Run();
    ASSERT_EQ(result.damaged, 1u) << part;
    EXPECT_EQ(result.damage[0].code(), absl::StatusCode::kDataLoss);
    EXPECT_THAT(std::string(result.damage[0].message()), testing::AllOf(testing::HasSubstr(".sst"), testing::HasSubstr(part)));
    ASSERT_TRUE(Flip(part, 2, at)) << "mended";
  }
  EXPECT_EQ(Run().damaged, 0u);
}

TEST_F(ScrubTest, AnInt8VersionIsReadInItsOwnForm) {
  const BankSpec spec = Spec();
  const auto filled = [&](const Cut&, BlockStore* from, BlockStore* to) -> absl::StatusOr<CutDigest> {
    CutDigest digest;
    const absl::Status copied = from->Scan(kBlockKeyPrefix, [&](std::string_view key, absl::Span<const uint8_t>) {
      std::vector<uint8_t>& payload = smaller_.emplace_back(PayloadBytes(spec, 1, PayloadType::kI8Rows), uint8_t{0});
      for (size_t i = 0; i < payload.size(); ++i) payload[i] = static_cast<uint8_t>(smaller_.size() * 31 + i * i);
      const WeightsRecord record{1, Crc32c(payload.data(), payload.size()), payload};
      digest.Add({1, static_cast<uint32_t>(smaller_.size() - 1)}, 1, record.crc32c);
      const std::string header = EncodeWeightsHeader(record);
      return to->Apply({BlockStore::Write{std::string(key), {AsBytes(header), record.payload}}});
    });
    if (!copied.ok()) return copied;
    return digest;
  };
  ASSERT_TRUE(store_->Publish("c", "v", PayloadType::kI8Rows, filled).ok());
  EXPECT_EQ(Run().damaged, 0u);
  payloads_ = smaller_;
  ASSERT_TRUE(Flip("/versions/v/weights", 1, 99));
  const ScrubResult result = Run();
  ASSERT_EQ(result.damaged, 1u);
  EXPECT_THAT(std::string(result.damage[0].message()), testing::HasSubstr("version v in versions/v/weights"));
}

TEST_F(ScrubTest, RunsInTheBackgroundWithinItsRate) {
  const BankSpec spec = Spec();
  const uint64_t bytes = Run().bytes;
  ASSERT_TRUE(Flip("/checkpoints/c/weights", 3, 77));
  prometheus::Gauge& damaged = GetGauge("membank_memory_scrub_damaged_records", "");
  prometheus::Gauge& age = GetGauge("membank_memory_scrub_age_seconds", "");
  damaged.Set(0);
  const absl::Time begin = absl::Now();
  Scrubber scrubber(store_.get(), &spec, bytes * 2, absl::Hours(1));  // half a second for a pass
  while (damaged.Value() == 0 && absl::Now() < begin + absl::Seconds(20)) absl::SleepFor(absl::Milliseconds(5));
  EXPECT_EQ(damaged.Value(), 1);
  EXPECT_GT(absl::Now() - begin, absl::Milliseconds(250));
  absl::SleepFor(absl::Milliseconds(1200));
  EXPECT_GT(age.Value(), 0.5);
  EXPECT_LT(age.Value(), 10);
}

}  // namespace
}  // namespace membank
