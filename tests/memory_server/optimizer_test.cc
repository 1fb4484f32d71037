// Compiled without fused multiply-add (CMakeLists.txt), like the code under test: the scalar reference must be equal bit for bit.
#include "memory_server/optimizer.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <random>

#include "common/bank/block_init.h"
#include "common/bank/gradient_codec.h"
#include "common/base/crc32c.h"
#include "common/base/file.h"
#include "fmt/format.h"
#include "nlohmann/json.hpp"

namespace membank {
namespace {

struct State {
  std::vector<float> w, m, v;
};

// The update of a block, straight from the formula, one rounding at a time.
void Reference(OptimizerKind kind, const StepFactors& f, BlockShape shape, const std::vector<float>& gradient, State* s) {
  for (uint64_t r = 0; r < shape.rows; ++r) {
    const size_t first = r * shape.row;
    volatile float factor = 0;
    if (kind == OptimizerKind::kRowWiseAdamW) {
      float lanes[16] = {}, sum = 0;
      for (size_t i = 0; i < shape.row; ++i) {
        volatile float g = gradient[first + i] * f.scale, square = g * g;
        lanes[i % 16] += square;
      }
      for (float lane : lanes) sum += lane;
      volatile float mean = sum / static_cast<float>(shape.row), kept = f.beta2 * s->v[r], added = f.one_minus_beta2 * mean;
      s->v[r] = kept + added;
      volatile float root = std::sqrt(s->v[r]), corrected = root * f.inverse_root_correction2, denominator = corrected + f.epsilon;
      factor = f.rate / denominator;
    }
    for (size_t i = first; i < first + shape.row; ++i) {
      volatile float g = gradient[i] * f.scale, kept = s->w[i] * f.keep, change;
      if (kind == OptimizerKind::kSgd) {
        change = f.rate * g;
      } else {
        volatile float m_kept = f.beta1 * s->m[i], m_new = f.one_minus_beta1 * g;
        s->m[i] = m_kept + m_new;
      }
      if (kind == OptimizerKind::kRowWiseAdamW) change = factor * s->m[i];
      if (kind == OptimizerKind::kAdamW) {
        volatile float square = g * g, v_kept = f.beta2 * s->v[i], v_new = f.one_minus_beta2 * square;
        s->v[i] = v_kept + v_new;
        volatile float root = std::sqrt(s->v[i]), corrected = root * f.inverse_root_correction2, denominator = corrected + f.epsilon;
        volatile float numerator = f.rate * s->m[i];
        change = numerator / denominator;
      }
      s->w[i] = kept - change;
    }
  }
}

// The 16 random bits of element e, from the words of update_loops.h.
uint16_t NoiseOf(const NoiseKey& key, uint64_t e) {
  const uint64_t in_group = e % 128;
  const auto words = Philox4x32({static_cast<uint32_t>(e / 128 * 16 + in_group % 32 / 2), static_cast<uint32_t>(key.step), key.level, key.cluster},
                                {static_cast<uint32_t>(key.seed), static_cast<uint32_t>(key.seed >> 32)});
  return static_cast<uint16_t>(words[in_group / 32] >> (16 * (e % 2)));
}

uint16_t RoundedWith(float value, uint16_t noise) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  return std::isfinite(value) ? static_cast<uint16_t>((bits + noise) >> 16) : FloatToBF16(value);
}

Gradient ToGradient(BlockShape shape, std::vector<float> values, DType dtype) {
  Gradient gradient{dtype, Buffer(GradientBytes(dtype, shape))};
  if (dtype == kI8Rows) EncodeInt8Rows(shape, absl::MakeSpan(values), gradient.bytes.span());
  else EncodePayload(values, dtype, gradient.bytes.span());
  return gradient;
}

std::vector<float> FromGradient(BlockShape shape, const Gradient& gradient) {
  GradientReader reader(gradient, shape, shape.rows, Loops(UpdateIsa::kScalar));
  const float* const values = reader.Rows(0, shape.rows);
  return {values, values + shape.elements()};
}

enum class Weights { kF32, kMaster, kStochastic };
constexpr NoiseKey kNoise{0x123456789abcdef, 41, 2, 77};

class OptimizerTest : public ::testing::TestWithParam<std::tuple<OptimizerKind, Weights, DType>> {};

TEST_P(OptimizerTest, EqualsTheScalarReferenceBitForBit) {
  const auto [kind, weights, gradient_dtype] = GetParam();
  RunSettings run;
  run.optimizer = kind;
  const DType bank = weights == Weights::kF32 ? DType::kF32 : DType::kBF16;
  for (const UpdateIsa isa : {UpdateIsa::kScalar, UpdateIsa::kAvx2, UpdateIsa::kAvx512}) {
    if (!Supported(isa)) continue;
    for (const BlockShape shape : {BlockShape{1, 1}, {3, 1}, {1, 7}, {5, 16}, {7, 33}, {3, 576}, {200, 64}, {2, 5000}}) {
      std::mt19937 random(11);
      std::normal_distribution<float> normal;
      const size_t size = shape.elements();
      State expected{std::vector<float>(size), std::vector<float>(size), std::vector<float>(size)};
      for (float& w : expected.w) w = weights == Weights::kStochastic ? BF16ToFloat(FloatToBF16(normal(random))) : normal(random);
      State actual = expected;
      Buffer payload(size * DTypeBytes(bank)), next(payload.size());
      EncodePayload(actual.w, bank, payload.span());
      for (uint64_t step = 1; step <= 3; ++step) {
        std::vector<float> values(size);
        for (float& value : values) value = normal(random) * 1e-2f;
        const Gradient gradient = ToGradient(shape, values, gradient_dtype);
        const StepFactors factors = MakeStepFactors(run, {0.7f, 3e-3f, 0.1f}, step);
        Reference(kind, factors, shape, FromGradient(shape, gradient), &expected);
        if (weights == Weights::kStochastic)
          for (size_t i = 0; i < size; ++i) expected.w[i] = BF16ToFloat(RoundedWith(expected.w[i], NoiseOf(kNoise, i)));

        BlockArrays arrays;
        arrays.shape = shape;
        arrays.payload = bank;
        arrays.payload_in = payload.data();
        if (weights == Weights::kMaster) arrays.weights = actual.w.data();
        arrays.payload_out = next.data();
        arrays.m = actual.m.data();
        arrays.v = actual.v.data();
        arrays.noise = kNoise;
        const uint32_t crc = UpdateBlock(kind, factors, gradient, arrays, Loops(isa));
        std::swap(payload, next);

        Buffer rounded(payload.size());
        EncodePayload(expected.w, bank, rounded.span());
        const std::string where = fmt::format("{} rows of {}, step {}, {}", shape.rows, shape.row, step, Loops(isa).name);
        ASSERT_EQ(std::memcmp(payload.data(), rounded.data(), payload.size()), 0) << where;
        ASSERT_EQ(crc, Crc32c(payload.data(), payload.size())) << where;
        if (weights == Weights::kMaster) {
          ASSERT_EQ(actual.w, expected.w) << where;
        }
        ASSERT_EQ(actual.m, expected.m) << where;
        ASSERT_EQ(actual.v, expected.v) << where;
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(All, OptimizerTest,
                         ::testing::Combine(::testing::Values(OptimizerKind::kAdamW, OptimizerKind::kRowWiseAdamW, OptimizerKind::kSgd),
                                            ::testing::Values(Weights::kF32, Weights::kMaster, Weights::kStochastic),
                                            ::testing::Values(DType::kF32, DType::kBF16, kI8Rows)));

TEST(Optimizer, FollowsTorch) {  // tests/golden/make_optimizers.py
  auto text = ReadFile(std::string(std::getenv("MEMBANK_SOURCE_DIR")) + "/tests/golden/optimizers.json");
  ASSERT_TRUE(text.ok()) << text.status();
  const nlohmann::json goldens = nlohmann::json::parse(*text);
  const BlockShape shape{goldens["rows"], goldens["row"]};
  for (const auto& [name, kind] : {std::pair("adamw", OptimizerKind::kAdamW), std::pair("sgd", OptimizerKind::kSgd),
                                   std::pair("row_wise_adamw", OptimizerKind::kRowWiseAdamW)}) {
    RunSettings run;
    run.optimizer = kind;
    run.beta1 = goldens["beta1"];
    run.beta2 = goldens["beta2"];
    run.epsilon = goldens["epsilon"];
    const nlohmann::json& golden = goldens[name];
    std::vector<float> w = golden["initial"].get<std::vector<float>>(), m(w.size()), v(w.size());
    Buffer payload(w.size() * 2);
    uint64_t t = 0;
    for (const nlohmann::json& step : golden["steps"]) {
      const StepFactors factors = MakeStepFactors(run, {1.0f, step["learning_rate"].get<float>(), step["weight_decay"].get<float>()}, ++t);
      BlockArrays arrays{shape, DType::kBF16, w.data(), nullptr, payload.data(), m.data(), v.data()};
      UpdateBlock(kind, factors, ToGradient(shape, step["gradient"].get<std::vector<float>>(), DType::kF32), arrays);
      const std::vector<float> expected = step["weights"].get<std::vector<float>>();
      for (size_t i = 0; i < w.size(); ++i) ASSERT_NEAR(w[i], expected[i], 5e-7 * std::max(1.0f, std::abs(expected[i]))) << name << " step " << t;
    }
    EXPECT_EQ(t, 6u);
  }
}

// Rounding is right in the mean: many steps, each far below a BF16 step of the weight, arrive; rounding to nearest would lose them all.
TEST(Optimizer, StochasticRoundingKeepsSmallChanges) {
  RunSettings run;
  run.optimizer = OptimizerKind::kSgd;
  const BlockShape shape{16, 512};
  Buffer payload(shape.elements() * 2), next(payload.size());
  EncodePayload(std::vector<float>(shape.elements(), 1.0f), DType::kBF16, payload.span());
  const Gradient gradient = ToGradient(shape, std::vector<float>(shape.elements(), 1.0f), DType::kF32);
  for (uint64_t step = 1; step <= 100; ++step) {
    BlockArrays arrays{shape, DType::kBF16, nullptr, payload.data(), next.data()};
    arrays.noise = {7, step, 1, 3};
    UpdateBlock(run.optimizer, MakeStepFactors(run, {1.0f, 1e-4f, 0.0f}, 0), gradient, arrays);
    std::swap(payload, next);
  }
  std::vector<float> values(shape.elements());
  DecodePayload(payload.span(), DType::kBF16, absl::MakeSpan(values));
  double mean = 0;
  for (float value : values) mean += value / values.size();
  EXPECT_NEAR(mean, 0.99, 2e-4);  // a BF16 step below 1 is 0.004; the mean of 8,192 elements after 100 steps is good to 1e-4
}

TEST(Optimizer, StochasticRoundingLeavesInfinityAndNaNAlone) {
  RunSettings run;
  run.optimizer = OptimizerKind::kSgd;
  const BlockShape shape{1, 4};
  const uint16_t in[] = {0x7f80, 0xff80, 0x7fc1, 0x7f7f};  // inf, -inf, NaN, the largest
  Buffer payload(8);
  BlockArrays arrays{shape, DType::kBF16, nullptr, reinterpret_cast<const uint8_t*>(in), payload.data()};
  UpdateBlock(run.optimizer, MakeStepFactors(run, {1.0f, 0.0f, 0.0f}, 0), ToGradient(shape, {0, 0, 0, 0}, DType::kF32), arrays);
  EXPECT_EQ(std::memcmp(payload.data(), in, 6), 0);
  EXPECT_EQ(std::memcmp(payload.data() + 6, in + 3, 2), 0);
}

TEST(Optimizer, WeightDecayFollowsItsPolicy) {
  RunSettings run;
  const ApplyParameters parameters{1.0f, 0.1f, 0.5f};  // keeps 0.95
  EXPECT_FLOAT_EQ(MakeStepFactors(run, parameters, 1, 3).keep, 0.95f);
  run.decay = DecayPolicy::kMissed;
  EXPECT_FLOAT_EQ(MakeStepFactors(run, parameters, 1, 1).keep, 0.95f);
  EXPECT_FLOAT_EQ(MakeStepFactors(run, parameters, 1, 3).keep, 0.95f * 0.95f * 0.95f);
  run.decay = DecayPolicy::kNone;
  EXPECT_EQ(MakeStepFactors(run, parameters, 1, 3).keep, 1.0f);
}

}  // namespace
}  // namespace membank
