#include "common/bank/block_init.h"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "common/bank/block_layout.h"
#include "common/base/crc32c.h"
#include "tests/testing/typed_spec.h"

namespace membank {
namespace {

using testing_support::kMemoryTypes;
using testing_support::TypedSpec;

using Words = std::array<uint32_t, 4>;

BankSpec Spec(DType dtype = DType::kF32) {
  BankSpec spec;
  spec.bank_id = "init";
  spec.fan_out = 4;
  spec.widths = {37, 8};  // 37 x 50 is no multiple of 4: layers do not start at a counter
  spec.layers = 3;
  spec.hidden = 50;
  spec.dtype = dtype;
  spec.seed = 0x123456789abcdef0;
  spec.anchor_fingerprint = spec.tree_fingerprint = "none";
  return spec;
}

std::vector<float> Init(const BankSpec& spec, BlockId id) {
  std::vector<float> values(spec.BlockElements(id.level));
  InitBlock(spec, id, absl::MakeSpan(values));
  return values;
}

// Random123, tests/kat_vectors, philox4x32 10.
TEST(Philox, KnownAnswers) {
  EXPECT_EQ(Philox4x32({0, 0, 0, 0}, {0, 0}), (Words{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  constexpr uint32_t kOnes = 0xffffffff;
  EXPECT_EQ(Philox4x32({kOnes, kOnes, kOnes, kOnes}, {kOnes, kOnes}), (Words{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
  EXPECT_EQ(Philox4x32({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, {0xa4093822, 0x299f31d0}),
            (Words{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
}

// Element e is word e % 4 of counter e / 4, through the inverse normal distribution function: checked against bisection of
// erfc (fp32 loses some 1e-4 of a sigma in the tails).
TEST(BlockInit, EveryElementIsTheTruncatedNormalOfItsPhiloxWord) {
  const BankSpec spec = Spec();
  const BlockId id{1, 2};
  const std::vector<float> values = Init(spec, id);
  for (uint32_t layer = 0; layer < spec.layers; ++layer) {
    const FfnLayerRange range = FfnLayer(spec, id.level, layer);
    for (uint64_t e = range.gate; e < range.down; e += 7) {
      const Words words = Philox4x32({static_cast<uint32_t>(e / 4), 0, id.level, id.cluster}, {0x9abcdef0, 0x12345678});
      const double p = 0.5 + static_cast<int32_t>(words[e % 4]) / 4294967296.0 * (1 - 2 * 0.02425);
      double low = -3, high = 3;
      for (int i = 0; i < 60; ++i) {
        const double middle = (low + high) / 2;
        (0.5 * std::erfc(-middle / std::sqrt(2.0)) < p ? low : high) = middle;
      }
      ASSERT_NEAR(values[e], low / std::sqrt(50.0), 1e-4) << e;
    }
    for (uint64_t e = range.down; e < range.end; ++e) ASSERT_EQ(values[e], 0.0f) << "W3 starts at zero: an untouched block has no effect";
  }
}

TEST(BlockInit, StatisticsAreThoseOfATruncatedNormal) {
  BankSpec spec = Spec();
  spec.hidden = 512;
  spec.widths = {256};
  const std::vector<float> values = Init(spec, {1, 3});
  const double sigma = 1 / std::sqrt(512.0);
  double sum = 0, squares = 0, largest = 0;
  uint64_t count = 0;
  for (uint32_t layer = 0; layer < spec.layers; ++layer) {
    const FfnLayerRange range = FfnLayer(spec, 1, layer);
    for (uint64_t e = range.gate; e < range.down; ++e, ++count) {
      sum += values[e];
      squares += double{values[e]} * values[e];
      largest = std::max<double>(largest, std::abs(values[e]));
    }
  }
  // A standard normal cut at a = 1.9730: variance 1 - 2 a f(a) / (1 - 2 * 0.02425) = 0.7638.
  EXPECT_NEAR(sum / count, 0, 5 * sigma / std::sqrt(double(count)));
  EXPECT_NEAR(squares / count / (sigma * sigma), 0.7638, 0.005);
  EXPECT_LE(largest, 1.9731 * sigma);
  EXPECT_GE(largest, 1.97 * sigma);
}

TEST(BlockInit, BlocksDifferAndSeedsDiffer) {
  BankSpec spec = Spec();
  const std::vector<float> first = Init(spec, {2, 0});
  EXPECT_EQ(first, Init(spec, {2, 0}));
  EXPECT_NE(first, Init(spec, {2, 1}));
  EXPECT_NE(first, Init(spec, GenericBlock(4, 2)));
  spec.seed ^= uint64_t{1} << 40;
  EXPECT_NE(first, Init(spec, {2, 0}));
}

TEST(BlockInit, PayloadIsTheRoundedValues) {
  for (DType dtype : {DType::kF32, DType::kBF16}) {
    const BankSpec spec = Spec(dtype);
    const std::vector<float> values = Init(spec, {1, 1});
    std::vector<uint8_t> expected(spec.BlockBytes(1)), payload(spec.BlockBytes(1));
    EncodePayload(values, dtype, absl::MakeSpan(expected));
    InitBlockPayload(spec, {1, 1}, absl::MakeSpan(payload));
    EXPECT_EQ(payload, expected);
    std::vector<float> decoded(values.size());
    DecodePayload(payload, dtype, absl::MakeSpan(decoded));
    for (size_t i = 0; i < values.size(); ++i)
      ASSERT_EQ(decoded[i], dtype == DType::kF32 ? values[i] : BF16ToFloat(FloatToBF16(values[i]))) << i;
  }
}

// A uniform value is its Philox word; normal ones of kv have standard deviation 1; the rest is zero, so that no type has an effect.
TEST(BlockInit, EveryTypeStartsAsItsMatricesSay) {
  for (const MemoryType type : kMemoryTypes) {
    BankSpec spec = TypedSpec(type);
    spec.memory_layers = {1, 3};
    const BlockId id{1, 2};
    const std::vector<float> values = Init(spec, id);
    uint64_t e = 0;
    for (uint32_t layer = 0; layer < 2; ++layer) {
      for (const BlockMatrix& matrix : MatricesOf(spec)) {
        const float bound = 1.0f / std::sqrt(static_cast<float>(matrix.columns));
        for (const uint64_t end = e + matrix.columns * spec.width(1); e < end; ++e) {
          const uint32_t word = Philox4x32({static_cast<uint32_t>(e / 4), 0, id.level, id.cluster}, {42, 0})[e % 4];
          const float uniform = static_cast<int32_t>(word) / 2147483648.0f;
          switch (matrix.initial) {
            case InitialValues::kZero:
              ASSERT_EQ(values[e], 0.0f) << matrix.name;
              break;
            case InitialValues::kKaiming:
              ASSERT_FLOAT_EQ(values[e], uniform * bound) << matrix.name;
              break;
            case InitialValues::kNormal:  // increasing in the word, cut at 1.9731 sigma
              ASSERT_EQ(values[e] > 0, uniform > 0) << matrix.name;
              ASSERT_LE(std::abs(values[e]), 1.9731f * (type == MemoryType::kKv ? 1.0f : bound)) << matrix.name;
              break;
          }
        }
      }
    }
    ASSERT_EQ(e, values.size());
  }
}

TEST(BlockInit, KeysHaveStandardDeviationOne) {
  BankSpec spec = TypedSpec(MemoryType::kKv);
  spec.widths = {512};
  const std::vector<float> values = Init(spec, {1, 0});
  double squares = 0;
  for (uint64_t i = 0; i < 512 * 32; ++i) squares += double{values[i]} * values[i];
  EXPECT_NEAR(squares / (512 * 32), 0.7638, 0.02) << "of a standard normal cut at 1.973";
}

// Equal on every machine and in every build: the bits are pinned.
TEST(BlockInit, BitsArePinned) {
  const BankSpec spec = Spec(DType::kF32);
  std::vector<uint8_t> payload(spec.BlockBytes(1));
  InitBlockPayload(spec, {1, 2}, absl::MakeSpan(payload));
  EXPECT_EQ(Crc32c(payload.data(), payload.size()), 869994211u);
  const std::pair<MemoryType, uint32_t> others[] = {
      {MemoryType::kLoraQk, 1252858428u}, {MemoryType::kLoraVo, 849442229u}, {MemoryType::kLoraFfn, 3632354847u}, {MemoryType::kKv, 1164655066u}};
  for (const auto& [type, crc] : others) {
    const BankSpec typed = TypedSpec(type);
    payload.resize(typed.BlockBytes(1));
    InitBlockPayload(typed, {1, 2}, absl::MakeSpan(payload));
    EXPECT_EQ(Crc32c(payload.data(), payload.size()), crc) << MemoryTypeName(type);
  }
}

}  // namespace
}  // namespace membank
