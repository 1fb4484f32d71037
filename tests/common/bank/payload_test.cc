#include "common/bank/payload.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <random>

#include "common/bank/block_init.h"
#include "common/bank/block_layout.h"
#include "common/base/file.h"
#include "common/base/status_macros.h"
#include "nlohmann/json.hpp"
#include "tests/testing/typed_spec.h"

namespace membank {
namespace {

BankSpec Spec(DType dtype, uint32_t width = 3, uint32_t layers = 4, uint32_t hidden = 37) {
  BankSpec spec;
  spec.fan_out = 2;
  spec.widths = {width};
  spec.layers = layers;
  spec.hidden = hidden;
  spec.dtype = dtype;
  return spec;
}

std::vector<uint8_t> Encoded(const BankSpec& spec, const std::vector<float>& values) {
  std::vector<uint8_t> payload(spec.BlockBytes(1));
  EncodePayload(values, spec.dtype, absl::MakeSpan(payload));
  return payload;
}

std::vector<uint8_t> Quantised(const BankSpec& spec, const std::vector<float>& values) {
  std::vector<uint8_t> out(PayloadBytes(spec, 1, PayloadType::kI8Rows));
  const absl::Status status = QuantisePayload(spec, 1, Encoded(spec, values), absl::MakeSpan(out));
  EXPECT_TRUE(status.ok()) << status;
  return out;
}

std::vector<float> Dequantised(const BankSpec& spec, const std::vector<uint8_t>& payload) {
  std::vector<float> values(spec.BlockElements(1));
  DequantisePayload(spec, 1, payload, absl::MakeSpan(values));
  return values;
}

// Rows of all sizes; some are zero.
std::vector<float> RandomValues(const BankSpec& spec) {
  std::mt19937 random(5);
  std::normal_distribution<float> normal;
  std::vector<float> values(spec.BlockElements(1));
  for (uint64_t i = 0; i < values.size(); ++i) {
    const uint64_t row = i / spec.hidden;
    values[i] = row % 5 == 4 ? 0.0f : normal(random) * std::pow(10.0f, static_cast<float>(row % 9) - 5);
  }
  return values;
}

TEST(Payload, SizesOfEveryForm) {
  BankSpec spec = Spec(DType::kF32, 64, 30, 576);
  EXPECT_EQ(PayloadBytes(spec, 1, PayloadType::kBank), spec.BlockBytes(1));
  const uint64_t rows = 3 * 64 * 30;
  EXPECT_EQ(PayloadBytes(spec, 1, PayloadType::kI8Rows), rows * (576 + 4));
  EXPECT_LT(PayloadBytes(spec, 1, PayloadType::kI8Rows), spec.BlockBytes(1) * 0.252);
  EXPECT_EQ(LayerBytes(spec, 1, PayloadType::kI8Rows) * 30, PayloadBytes(spec, 1, PayloadType::kI8Rows));
  EXPECT_TRUE(Int8IsSmaller(Spec(DType::kBF16, 3, 4, 5)));
  EXPECT_FALSE(Int8IsSmaller(Spec(DType::kBF16, 3, 4, 4)));
  EXPECT_EQ(PayloadTypeName(spec, PayloadType::kBank), "F32");
  EXPECT_EQ(PayloadTypeName(spec, PayloadType::kI8Rows), "I8_ROWS");
}

TEST(Payload, WhatIsReadIsOffByHalfAScaleAtMost) {
  for (const DType dtype : {DType::kF32, DType::kBF16}) {
    const BankSpec spec = Spec(dtype);
    std::vector<float> values = RandomValues(spec);
    DecodePayload(Encoded(spec, values), dtype, absl::MakeSpan(values));  // as the bank has them
    const std::vector<float> read = Dequantised(spec, Quantised(spec, values));
    for (uint64_t row = 0; row < values.size() / spec.hidden; ++row) {
      float largest = 0;
      for (uint64_t i = 0; i < spec.hidden; ++i) largest = std::max(largest, std::abs(values[row * spec.hidden + i]));
      for (uint64_t i = row * spec.hidden; i < (row + 1) * spec.hidden; ++i) {
        ASSERT_LE(std::abs(read[i] - values[i]), 0.50001f * largest / 127) << DTypeName(dtype) << " element " << i;
        if (values[i] == 0) ASSERT_EQ(read[i], 0) << "zeros stay zero";
      }
    }
  }
}

TEST(Payload, MatricesOfDifferentWidthHaveScalesOfTheirOwn) {
  for (const MemoryType type : testing_support::kMemoryTypes) {
    const BankSpec spec = testing_support::TypedSpec(type);
    std::vector<float> values(spec.BlockElements(1));
    uint64_t at = 0;
    std::vector<float> bounds;  // half a scale of each element
    for (uint32_t layer = 0; layer < spec.block_layers(); ++layer) {
      float size = 1;
      for (const BlockMatrix& matrix : MatricesOf(spec)) {
        size *= 100;
        for (const uint64_t end = at + matrix.columns * spec.width(1); at < end; ++at) {
          values[at] = size * static_cast<float>(static_cast<int>(at % 11) - 5);
          bounds.push_back(0.50001f * 5 * size / 127);
        }
      }
    }
    const std::vector<float> read = Dequantised(spec, Quantised(spec, values));
    for (uint64_t i = 0; i < values.size(); ++i) ASSERT_LE(std::abs(read[i] - values[i]), bounds[i]) << MemoryTypeName(type) << " element " << i;
  }
}

TEST(Payload, ALayerIsOneRangeOfItsOwn) {
  const BankSpec spec = Spec(DType::kF32);
  std::vector<float> values = RandomValues(spec);
  const std::vector<uint8_t> before = Quantised(spec, values);
  const FfnLayerRange third = FfnLayer(spec, 1, 2);
  for (uint64_t i = third.gate; i < third.end; ++i) values[i] += 1;
  const std::vector<uint8_t> after = Quantised(spec, values);
  const uint64_t layer = LayerBytes(spec, 1, PayloadType::kI8Rows);
  for (uint64_t i = 0; i < spec.layers; ++i)
    EXPECT_EQ(std::memcmp(&before[i * layer], &after[i * layer], layer) == 0, i != 2) << "layer " << i;
}

TEST(Payload, NanAndInfinityAreRefusedByLayerAndRow) {
  for (const float bad : {std::numeric_limits<float>::quiet_NaN(), -std::numeric_limits<float>::infinity()}) {
    for (const DType dtype : {DType::kF32, DType::kBF16}) {
      const BankSpec spec = Spec(dtype);
      std::vector<float> values = RandomValues(spec);
      values[FfnLayer(spec, 1, 3).up + 1] = bad;  // row 0 of up is row 3 of the layer
      std::vector<uint8_t> out(PayloadBytes(spec, 1, PayloadType::kI8Rows));
      const absl::Status refused = QuantisePayload(spec, 1, Encoded(spec, values), absl::MakeSpan(out));
      EXPECT_EQ(refused.code(), absl::StatusCode::kFailedPrecondition);
      EXPECT_NE(refused.message().find("row 3 of layer 3 holds NaN or infinity"), std::string::npos) << refused;
    }
  }
}

TEST(Payload, ZeroBytesAreZeros) {  // what a receiver of a blocked block computes with
  const BankSpec spec = Spec(DType::kBF16);
  for (const float value : Dequantised(spec, std::vector<uint8_t>(PayloadBytes(spec, 1, PayloadType::kI8Rows)))) ASSERT_EQ(value, 0);
}

TEST(Payload, FollowsNumpy) {  // tests/golden/make_int8_rows.py
  const auto text = ReadFile(std::string(std::getenv("MEMBANK_SOURCE_DIR")) + "/tests/golden/int8_rows.json");
  ASSERT_TRUE(text.ok()) << text.status();
  const nlohmann::json golden = nlohmann::json::parse(*text);
  const BankSpec spec = Spec(DType::kF32, golden["width"], golden["layers"], golden["hidden"]);
  const std::vector<uint8_t> payload = Quantised(spec, golden["values"].get<std::vector<float>>());
  std::string hex;
  for (const uint8_t byte : payload) hex += fmt::format("{:02x}", byte);
  EXPECT_EQ(hex, golden["payload"].get<std::string>());
  EXPECT_EQ(Dequantised(spec, payload), golden["read"].get<std::vector<float>>());
}

}  // namespace
}  // namespace membank
