#include "memory_server/quantise.h"

#include "common/base/bytes.h"
#include "memory_server/block_record.h"
#include "tests/memory_server/shard_fixture.h"

namespace membank {
namespace {

class QuantiseTest : public ::testing::Test {
 protected:
  void SetUp() override {
    std::filesystem::create_directories(root_);
    from_ = *InMemoryBlockStore::Open(root_ + "/from", StoreAccess::kReadWrite);
    to_ = *InMemoryBlockStore::Open(root_ + "/to", StoreAccess::kReadWrite);
    for (const BlockId id : {BlockId{1, 0}, BlockId{1, 3}, BlockId{2, 8}}) Put(id, 7 + id.cluster, Initial(id));
  }
  void TearDown() override { std::filesystem::remove_all(root_); }

  std::vector<float> Initial(BlockId id) const {
    std::vector<float> values(spec_.BlockElements(id.level));
    InitBlock(spec_, id, absl::MakeSpan(values));
    return values;
  }

  void Put(BlockId id, uint64_t version, const std::vector<float>& values) {
    std::vector<uint8_t> payload(spec_.BlockBytes(id.level));
    EncodePayload(values, spec_.dtype, absl::MakeSpan(payload));
    const WeightsRecord record{version, Crc32c(payload.data(), payload.size()), payload};
    const std::string header = EncodeWeightsHeader(record);
    ASSERT_OK(from_->Apply({BlockStore::Write{BlockKey(id), {AsBytes(header), record.payload}}}));
    digest_.Add(id, version, record.crc32c);
  }

  absl::StatusOr<CutDigest> Run() {
    return QuantiseStore(spec_, from_.get(), digest_, to_.get(), [this](uint64_t bytes) {
      asked_ += bytes;
      return asked_ <= room_ ? absl::OkStatus() : absl::ResourceExhaustedError("no room");
    });
  }

  const BankSpec spec_ = SmallSpec(DType::kBF16);
  const std::string root_ = testing::TempDir() + "/quantise." + std::to_string(::getpid());
  std::unique_ptr<BlockStore> from_, to_;
  CutDigest digest_;
  uint64_t asked_ = 0, room_ = UINT64_MAX;
};

TEST_F(QuantiseTest, EveryBlockIsWrittenOnceMoreWithItsVersion) {
  const auto digest = Run();
  ASSERT_OK(digest);
  CutDigest written;
  uint64_t bytes = 0;
  ASSERT_OK(to_->Scan(kBlockKeyPrefix, [&](std::string_view key, absl::Span<const uint8_t> value) -> absl::Status {
    const BlockId id = *ParseBlockKey(key);
    const auto record = DecodeWeights(value, PayloadBytes(spec_, id.level, PayloadType::kI8Rows));
    if (!record.ok()) return record.status();
    written.Add(id, record->version, record->crc32c);
    bytes += record->payload.size();
    std::vector<uint8_t> source(spec_.BlockBytes(id.level)), expected(record->payload.size());
    EncodePayload(Initial(id), spec_.dtype, absl::MakeSpan(source));
    EXPECT_TRUE(QuantisePayload(spec_, id.level, source, absl::MakeSpan(expected)).ok());
    EXPECT_EQ(std::vector<uint8_t>(record->payload.begin(), record->payload.end()), expected) << ToString(id);
    EXPECT_EQ(record->version, 7 + id.cluster);
    return absl::OkStatus();
  }));
  EXPECT_EQ(written, *digest);
  EXPECT_EQ(written.blocks, 3u);
  EXPECT_EQ(asked_, bytes);
}

TEST_F(QuantiseTest, DamageNansMissingBlocksAndAFullDiskEndItByName) {
  room_ = 1;
  EXPECT_CODE(Run(), kResourceExhausted, "no room");
  room_ = UINT64_MAX;

  std::vector<float> values = Initial({2, 7});
  values[3] = std::nanf("");
  Put({2, 7}, 1, values);
  EXPECT_CODE(Run(), kFailedPrecondition, "block 2/7: row 0 of layer 0 holds NaN");

  std::string damaged;
  ASSERT_OK(from_->Get(BlockKey({1, 3}), [&](absl::Span<const uint8_t> value) { damaged.assign(value.begin(), value.end()); }));
  damaged.back() ^= 1;
  ASSERT_OK(from_->Put(BlockKey({1, 3}), AsBytes(damaged)));
  EXPECT_CODE(Run(), kDataLoss, "payload of block 1/3: its CRC32C is");
  damaged.pop_back();
  ASSERT_OK(from_->Put(BlockKey({1, 3}), AsBytes(damaged)));
  EXPECT_CODE(Run(), kDataLoss, "payload of block 1/3: its payload has");
  ASSERT_OK(from_->Delete(BlockKey({1, 3})));
  ASSERT_OK(from_->Delete(BlockKey({2, 7})));
  EXPECT_CODE(Run(), kDataLoss, "it holds 2 blocks with digest");
}

}  // namespace
}  // namespace membank
