#include "common/bank/gradient_codec.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <random>

namespace membank {
namespace {

TEST(GradientCodec, BytesOfEveryFormat) {
  const BlockShape shape{6, 100};
  EXPECT_EQ(GradientBytes(DType::kF32, shape), 2400u);
  EXPECT_EQ(GradientBytes(DType::kBF16, shape), 1200u);
  EXPECT_EQ(GradientBytes(kI8Rows, shape), 600u + 24u);
}

// What is sent and what is left add up to what there was, and nothing left is larger than half a step of its row.
TEST(GradientCodec, Int8RowsLoseOnlyWhatTheyLeave) {
  const BlockShape shape{8, 131};
  std::mt19937 random(2);
  std::normal_distribution<float> normal;
  std::vector<float> values(shape.elements());
  for (uint64_t i = 0; i < values.size(); ++i) values[i] = normal(random) * std::pow(10.0f, static_cast<float>(i / shape.row) - 6);
  const std::vector<float> before = values;
  std::vector<uint8_t> bytes(GradientBytes(kI8Rows, shape));
  EncodeInt8Rows(shape, absl::MakeSpan(values), absl::MakeSpan(bytes));
  for (uint64_t i = 0; i < values.size(); ++i) {
    float scale;
    std::memcpy(&scale, bytes.data() + i / shape.row * 4, 4);
    const float sent = static_cast<float>(static_cast<int8_t>(bytes[shape.rows * 4 + i])) * scale;
    ASSERT_EQ(values[i], before[i] - sent);
    ASSERT_LE(std::abs(values[i]), 0.5001f * scale);
  }
}

TEST(GradientCodec, TheLargestOfARowIsExactAndZerosStayZero) {
  const BlockShape shape{3, 4};
  std::vector<float> values = {0, 0, 0, 0, -2, 1, 0, 0, 1e-42f, 0, 0, 0};
  std::vector<uint8_t> bytes(GradientBytes(kI8Rows, shape));
  EncodeInt8Rows(shape, absl::MakeSpan(values), absl::MakeSpan(bytes));
  const int8_t* const q = reinterpret_cast<const int8_t*>(bytes.data()) + 12;
  EXPECT_EQ(q[4], -127);
  EXPECT_EQ(q[5], 64);
  EXPECT_EQ(values[4], -2 + 127 * (2.0f / 127));
  for (int i : {0, 1, 2, 3, 8, 9}) EXPECT_EQ(q[i], 0);
  EXPECT_EQ(values[8], 1e-42f) << "too small for a scale: left for next time";
}

}  // namespace
}  // namespace membank
