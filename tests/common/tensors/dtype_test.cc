#include "common/tensors/dtype.h"

#include <cmath>
#include <limits>
#include <vector>

#include "gtest/gtest.h"

namespace membank {
namespace {

// The definition of IEEE binary16, in doubles.
double HalfByDefinition(uint16_t bits) {
  const int exponent = (bits >> 10) & 31;
  const double mantissa = bits & 1023;
  const double sign = bits & 0x8000 ? -1.0 : 1.0;
  if (exponent == 31) return mantissa == 0 ? sign * std::numeric_limits<double>::infinity() : std::nan("");
  return sign * (exponent == 0 ? std::ldexp(mantissa, -24) : std::ldexp(1024 + mantissa, exponent - 25));
}

TEST(DType, NamesAndAliases) {
  for (DType dtype : {DType::kF32, DType::kBF16, DType::kF16, DType::kI64, DType::kI32, DType::kU8}) {
    ASSERT_TRUE(ParseDType(DTypeName(dtype)).ok());
    EXPECT_EQ(*ParseDType(DTypeName(dtype)), dtype);
  }
  EXPECT_EQ(*ParseDType("bfloat16"), DType::kBF16);
  EXPECT_EQ(*ParseDType("fp16"), DType::kF16);
  EXPECT_EQ(*ParseDType("float32"), DType::kF32);
  EXPECT_EQ(DTypeBytes(DType::kBF16), 2u);
  EXPECT_EQ(DTypeBytes(DType::kI64), 8u);
  const absl::Status unknown = ParseDType("F7").status();
  EXPECT_EQ(unknown.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_NE(std::string(unknown.message()).find("'F7'"), std::string::npos);
}

TEST(DType, EveryHalfIsItsDefinitionAndComesBack) {
  std::vector<uint16_t> halves(65536);
  for (uint32_t i = 0; i < 65536; ++i) halves[i] = static_cast<uint16_t>(i);
  std::vector<float> floats(halves.size());
  ASSERT_TRUE(ConvertToFloats(DType::kF16, reinterpret_cast<const uint8_t*>(halves.data()), halves.size(), floats.data()).ok());
  for (uint32_t i = 0; i < 65536; ++i) {
    const double expected = HalfByDefinition(halves[i]);
    if (std::isnan(expected)) {
      ASSERT_TRUE(std::isnan(floats[i])) << i;
      ASSERT_TRUE(std::isnan(F16ToFloat(FloatToF16(floats[i]))));
    } else {
      ASSERT_EQ(floats[i], expected) << i;
      ASSERT_EQ(std::signbit(floats[i]), (i & 0x8000) != 0) << i;
      ASSERT_EQ(F16ToFloat(halves[i]), floats[i]);
      ASSERT_EQ(FloatToF16(floats[i]), halves[i]);
    }
  }
}

TEST(DType, FloatToHalfRoundsToNearestEven) {
  for (uint16_t half = 0; half < 0x7bff; ++half) {
    const float low = F16ToFloat(half), high = F16ToFloat(static_cast<uint16_t>(half + 1));
    const float middle = (low + high) / 2;   // exact
    const uint16_t even = half & 1 ? half + 1 : half;
    ASSERT_EQ(FloatToF16(middle), even) << half;
    ASSERT_EQ(FloatToF16(std::nextafter(middle, low)), half) << half;
    ASSERT_EQ(FloatToF16(std::nextafter(middle, high)), half + 1) << half;
    ASSERT_EQ(FloatToF16(-middle), even | 0x8000) << half;
  }
  EXPECT_EQ(FloatToF16(65519.0f), 0x7bff);
  EXPECT_EQ(FloatToF16(65520.0f), 0x7c00);   // the first that rounds to infinity
  EXPECT_EQ(FloatToF16(1e30f), 0x7c00);
  EXPECT_EQ(FloatToF16(1e-30f), 0);
}

TEST(DType, BFloat16RoundsToNearestEven) {
  EXPECT_EQ(FloatToBF16(1.0f), 0x3f80);
  EXPECT_EQ(FloatToBF16(std::bit_cast<float>(0x3f808000u)), 0x3f80);   // a tie goes to the even neighbour
  EXPECT_EQ(FloatToBF16(std::bit_cast<float>(0x3f818000u)), 0x3f82);
  EXPECT_EQ(FloatToBF16(std::bit_cast<float>(0x3f808001u)), 0x3f81);
  EXPECT_EQ(FloatToBF16(std::numeric_limits<float>::max()), 0x7f80);
  EXPECT_TRUE(std::isnan(BF16ToFloat(FloatToBF16(std::bit_cast<float>(0x7f800001u)))));
}

TEST(DType, UnalignedInputAndIntegers) {
  const uint8_t bytes[] = {0xff, 0x80, 0x3f, 0x00, 0xc0};
  float floats[2];
  ASSERT_TRUE(ConvertToFloats(DType::kBF16, bytes + 1, 2, floats).ok());
  EXPECT_EQ(floats[0], 1.0f);
  EXPECT_EQ(floats[1], -2.0f);
  EXPECT_EQ(ConvertToFloats(DType::kI64, bytes, 0, floats).code(), absl::StatusCode::kUnimplemented);
}

}  // namespace
}  // namespace membank
