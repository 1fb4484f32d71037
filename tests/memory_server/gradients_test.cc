#include "memory_server/gradients.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>

#include "common/bank/block_init.h"
#include "common/bank/gradient_codec.h"

namespace membank {
namespace {

Gradient ToGradient(BlockShape shape, std::vector<float> values, DType dtype = DType::kF32) {
  Gradient gradient{dtype, Buffer(GradientBytes(dtype, shape))};
  if (dtype == kI8Rows) EncodeInt8Rows(shape, absl::MakeSpan(values), gradient.bytes.span());
  else EncodePayload(values, dtype, gradient.bytes.span());
  return gradient;
}

std::vector<float> Values(BlockShape shape, const Gradient& gradient) {
  GradientReader reader(gradient, shape, shape.rows);
  const float* const values = reader.Rows(0, shape.rows);
  return {values, values + shape.elements()};
}

TEST(Gradients, AreAddedInRankOrder) {
  const BlockShape shape{1, 2};
  std::vector<Gradient> ranks;
  ranks.push_back(ToGradient(shape, {1e8f, 1}));
  ranks.push_back(ToGradient(shape, {1, 2}, DType::kBF16));
  ranks.push_back(ToGradient(shape, {-1e8f, 3}));
  const Gradient sum = SumContributions(shape, std::move(ranks));
  EXPECT_EQ(sum.dtype, DType::kF32);
  EXPECT_EQ(Values(shape, sum), (std::vector<float>{0, 6})) << "(1e8 + 1) - 1e8 is 0 in fp32; any other order gives 1";
}

TEST(Gradients, ASingleContributionIsKeptAsItCame) {
  const BlockShape shape{2, 2};
  std::vector<Gradient> ranks;
  ranks.push_back(ToGradient(shape, {4, 4, 0, 1}, kI8Rows));
  const Gradient sum = SumContributions(shape, std::move(ranks));
  EXPECT_EQ(sum.dtype, kI8Rows);
  EXPECT_EQ(sum.bytes.size(), 2 * 4u + 4u);
}

// Every format is summed exactly as its floats are, on every instruction set.
TEST(Gradients, TheSumOfAllFormatsIsTheSumOfTheirFloats) {
  std::mt19937 random(3);
  std::normal_distribution<float> normal;
  for (const BlockShape shape : {BlockShape{1, 1}, {3, 17}, {40, 576}, {2, 5000}}) {
    std::vector<float> expected(shape.elements());
    std::vector<Gradient> ranks;
    bool first = true;
    for (const DType dtype : {DType::kBF16, kI8Rows, DType::kF32, kI8Rows}) {
      std::vector<float> values(shape.elements());
      for (float& value : values) value = normal(random);
      ranks.push_back(ToGradient(shape, values, dtype));
      const std::vector<float> decoded = Values(shape, ranks.back());
      for (size_t i = 0; i < values.size(); ++i) expected[i] = first ? decoded[i] : expected[i] + decoded[i];
      first = false;
    }
    EXPECT_EQ(Values(shape, SumContributions(shape, std::move(ranks))), expected);
  }
}

TEST(Gradients, LoopsEqualTheScalarOnes) {
  std::mt19937 random(4);
  std::normal_distribution<float> normal;
  for (const UpdateIsa isa : {UpdateIsa::kAvx2, UpdateIsa::kAvx512}) {
    if (!Supported(isa)) continue;
    for (const BlockShape shape : {BlockShape{1, 1}, {3, 17}, {5, 576}}) {
      std::vector<float> values(shape.elements());
      for (float& value : values) value = normal(random);
      for (const DType dtype : {DType::kBF16, kI8Rows}) {
        const Gradient gradient = ToGradient(shape, values, dtype);
        GradientReader scalar(gradient, shape, shape.rows, Loops(UpdateIsa::kScalar)), vector(gradient, shape, shape.rows, Loops(isa));
        EXPECT_EQ(std::memcmp(scalar.Rows(0, shape.rows), vector.Rows(0, shape.rows), shape.elements() * 4), 0) << Loops(isa).name;
      }
      double expected[kSumLanes] = {}, lanes[kSumLanes] = {};
      Loops(UpdateIsa::kScalar).add_squares(shape.elements(), values.data(), expected);
      Loops(isa).add_squares(shape.elements(), values.data(), lanes);
      EXPECT_EQ(std::memcmp(lanes, expected, sizeof(lanes)), 0) << Loops(isa).name;
      const Gradient half = ToGradient(shape, values, DType::kBF16);
      double half_lanes[kSumLanes] = {}, half_expected[kSumLanes] = {};
      Loops(UpdateIsa::kScalar).add_squares(shape.elements(), Values(shape, half).data(), half_expected);
      Loops(isa).add_squares_bf16(shape.elements(), reinterpret_cast<const uint16_t*>(half.bytes.data()), half_lanes);
      EXPECT_EQ(std::memcmp(half_lanes, half_expected, sizeof(half_lanes)), 0) << Loops(isa).name;
      std::vector<float> sum = values, expected_sum = values;
      Loops(UpdateIsa::kScalar).add(shape.elements(), values.data(), expected_sum.data());
      Loops(isa).add(shape.elements(), values.data(), sum.data());
      EXPECT_EQ(sum, expected_sum);
    }
  }
}

TEST(Gradients, SumOfSquaresIsExactOnIntegers) {
  const BlockShape shape{1, 10007};
  std::vector<float> values;
  double expected = 0;
  for (int i = 0; i < 10007; ++i) values.push_back(static_cast<float>(i % 101 - 50)), expected += double(values.back()) * values.back();
  EXPECT_EQ(SumOfSquares(shape, ToGradient(shape, values, DType::kF32)), expected);
  EXPECT_EQ(SumOfSquares(shape, ToGradient(shape, values, DType::kBF16)), expected);
}

TEST(Gradients, TheFirstElementThatIsNotFiniteIsNamed) {
  const BlockShape shape{100, 100};
  for (const UpdateIsa isa : {UpdateIsa::kScalar, UpdateIsa::kAvx2, UpdateIsa::kAvx512}) {
    if (!Supported(isa)) continue;
    for (const float bad : {std::nanf(""), -INFINITY, INFINITY}) {
      std::vector<float> values(1001, -3e38f);
      for (const size_t where : {size_t{0}, size_t{513}, size_t{1000}}) {
        values[where] = bad;
        EXPECT_FALSE(Loops(isa).finite_f32(values.size(), ToGradient({1, 1001}, values).bytes.data()));
        EXPECT_FALSE(Loops(isa).finite_bf16(values.size(), ToGradient({1, 1001}, values, DType::kBF16).bytes.data()));
        values[where] = 3e38f;
        EXPECT_TRUE(Loops(isa).finite_f32(values.size(), ToGradient({1, 1001}, values).bytes.data()));
      }
    }
  }
  for (DType dtype : {DType::kF32, DType::kBF16}) {
    for (float bad : {std::nanf(""), -INFINITY, INFINITY}) {
      std::vector<float> values(shape.elements(), -3e38f);
      EXPECT_TRUE(CheckFinite(dtype, shape, ToGradient(shape, values, dtype).bytes.span()).ok());
      values[9000] = values[8777] = bad;
      const absl::Status status = CheckFinite(dtype, shape, ToGradient(shape, values, dtype).bytes.span());
      EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
      EXPECT_NE(std::string(status.message()).find("element 8777"), std::string::npos) << status;
    }
  }
}

TEST(Gradients, AnInt8RowWhoseScaleIsNotFiniteIsNamed) {
  const BlockShape shape{5, 10};
  std::vector<float> values(shape.elements(), 1.0f);
  EXPECT_TRUE(CheckFinite(kI8Rows, shape, ToGradient(shape, values, kI8Rows).bytes.span()).ok());
  for (float bad : {std::nanf(""), -INFINITY, INFINITY}) {
    values[37] = bad;
    const absl::Status status = CheckFinite(kI8Rows, shape, ToGradient(shape, values, kI8Rows).bytes.span());
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_NE(std::string(status.message()).find("gradient row 3 has the scale"), std::string::npos) << status;
  }
  Gradient huge = ToGradient(shape, std::vector<float>(shape.elements(), 1.0f), kI8Rows);
  const float scale = 3e38f;  // finite, but 127 times it is not
  std::memcpy(huge.bytes.data(), &scale, 4);
  EXPECT_FALSE(CheckFinite(kI8Rows, shape, huge.bytes.span()).ok());
}

}  // namespace
}  // namespace membank
