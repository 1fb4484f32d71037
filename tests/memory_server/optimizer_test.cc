// Compiled without fused multiply-add (CMakeLists.txt), like the code under test: the scalar reference must be equal bit for bit.
#include "memory_server/optimizer.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <random>

#include "common/bank/block_init.h"
#include "common/base/crc32c.h"
#include "common/base/file.h"
#include "nlohmann/json.hpp"

namespace membank {
namespace {

struct State {
  std::vector<float> w, m, v;
};

// The update of one element, straight from the formula.
void Reference(const StepFactors& f, bool adamw, const std::vector<float>& gradient, State* s) {
  for (size_t i = 0; i < s->w.size(); ++i) {
    volatile float g = gradient[i] * f.scale;  // volatile: one rounding each, and no vectorising
    if (!adamw) {
      volatile float kept = s->w[i] * f.keep, change = f.rate * g;
      s->w[i] = kept - change;
      continue;
    }
    volatile float m_kept = f.beta1 * s->m[i], m_new = f.one_minus_beta1 * g;
    s->m[i] = m_kept + m_new;
    volatile float square = g * g, v_kept = f.beta2 * s->v[i], v_new = f.one_minus_beta2 * square;
    s->v[i] = v_kept + v_new;
    volatile float root = std::sqrt(s->v[i]), corrected = root * f.inverse_root_correction2, denominator = corrected + f.epsilon;
    volatile float kept = s->w[i] * f.keep, numerator = f.rate * s->m[i], change = numerator / denominator;
    s->w[i] = kept - change;
  }
}

Gradient ToGradient(const std::vector<float>& values, DType dtype) {
  Gradient gradient{dtype, Buffer(values.size() * DTypeBytes(dtype))};
  EncodePayload(values, dtype, gradient.bytes.span());
  return gradient;
}

std::vector<float> FromGradient(const Gradient& gradient) {
  std::vector<float> values(gradient.bytes.size() / DTypeBytes(gradient.dtype));
  DecodePayload(gradient.bytes.span(), gradient.dtype, absl::MakeSpan(values));
  return values;
}

struct Kind {
  OptimizerKind optimizer;
  DType bank, gradient;
};

class OptimizerTest : public ::testing::TestWithParam<Kind> {};

TEST_P(OptimizerTest, EqualsTheScalarReferenceBitForBit) {
  const Kind kind = GetParam();
  const bool adamw = kind.optimizer == OptimizerKind::kAdamW;
  RunSettings run;
  run.optimizer = kind.optimizer;
  std::mt19937 random(11);
  std::normal_distribution<float> normal;
  for (size_t size : {1u, 7u, 16u, 33u, 1000u, 16384u, 50001u}) {
    State expected{std::vector<float>(size), std::vector<float>(size), std::vector<float>(size)};
    for (float& w : expected.w) w = normal(random);
    State actual = expected;
    Buffer payload(size * DTypeBytes(kind.bank)), next(payload.size());
    EncodePayload(actual.w, kind.bank, payload.span());
    for (uint64_t step = 1; step <= 3; ++step) {
      std::vector<float> values(size);
      for (float& value : values) value = normal(random) * 1e-2f;
      const Gradient gradient = ToGradient(values, kind.gradient);
      const StepFactors factors = MakeStepFactors(run, {0.7f, 3e-3f, 0.1f}, step);
      Reference(factors, adamw, FromGradient(gradient), &expected);

      BlockArrays arrays;
      arrays.elements = size;
      if (kind.bank == DType::kF32) arrays.payload_in = reinterpret_cast<const float*>(payload.data());
      else arrays.weights = actual.w.data();
      arrays.payload_out = next.data();
      arrays.m = actual.m.data();
      arrays.v = actual.v.data();
      const uint32_t crc = adamw ? AdamWUpdate(factors, gradient, arrays) : SgdUpdate(factors, gradient, arrays);
      std::swap(payload, next);

      Buffer rounded(payload.size());
      EncodePayload(expected.w, kind.bank, rounded.span());
      ASSERT_EQ(std::memcmp(payload.data(), rounded.data(), payload.size()), 0) << "size " << size << " step " << step;
      ASSERT_EQ(crc, Crc32c(payload.data(), payload.size()));
      if (kind.bank == DType::kBF16) {
        ASSERT_EQ(actual.w, expected.w);
      }
      ASSERT_EQ(actual.m, expected.m);
      ASSERT_EQ(actual.v, expected.v);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(All, OptimizerTest,
                         ::testing::Values(Kind{OptimizerKind::kAdamW, DType::kF32, DType::kF32}, Kind{OptimizerKind::kAdamW, DType::kF32, DType::kBF16},
                                           Kind{OptimizerKind::kAdamW, DType::kBF16, DType::kF32}, Kind{OptimizerKind::kAdamW, DType::kBF16, DType::kBF16},
                                           Kind{OptimizerKind::kSgd, DType::kF32, DType::kF32}, Kind{OptimizerKind::kSgd, DType::kF32, DType::kBF16},
                                           Kind{OptimizerKind::kSgd, DType::kBF16, DType::kF32}, Kind{OptimizerKind::kSgd, DType::kBF16, DType::kBF16}));

TEST(AdamW, FollowsTorchOptimAdamW) {  // tests/golden/make_adamw.py
  auto text = ReadFile(std::string(std::getenv("MEMBANK_SOURCE_DIR")) + "/tests/golden/adamw.json");
  ASSERT_TRUE(text.ok()) << text.status();
  const nlohmann::json golden = nlohmann::json::parse(*text);
  RunSettings run;
  run.beta1 = golden["beta1"];
  run.beta2 = golden["beta2"];
  run.epsilon = golden["epsilon"];
  std::vector<float> w = golden["initial"].get<std::vector<float>>(), m(w.size()), v(w.size());
  Buffer payload(w.size() * 2);
  uint64_t t = 0;
  for (const nlohmann::json& step : golden["steps"]) {
    const StepFactors factors = MakeStepFactors(run, {1.0f, step["learning_rate"].get<float>(), step["weight_decay"].get<float>()}, ++t);
    AdamWUpdate(factors, ToGradient(step["gradient"].get<std::vector<float>>(), DType::kF32),
                {w.size(), w.data(), nullptr, payload.data(), m.data(), v.data()});
    const std::vector<float> expected = step["weights"].get<std::vector<float>>();
    for (size_t i = 0; i < w.size(); ++i) ASSERT_NEAR(w[i], expected[i], 5e-7) << "step " << t << " element " << i;
  }
  EXPECT_EQ(t, 6u);
}

std::map<BlockId, Gradient> Rank(std::initializer_list<std::pair<BlockId, std::vector<float>>> blocks, DType dtype = DType::kF32) {
  RankGradients rank;
  for (const auto& [id, values] : blocks) rank.emplace(id, ToGradient(values, dtype));
  return rank;
}

TEST(Gradients, AreAddedInRankOrder) {
  std::vector<RankGradients> ranks;
  ranks.push_back(Rank({{{1, 0}, {1e8f, 1}}}));
  ranks.push_back(Rank({{{1, 0}, {1, 2}}, {{2, 5}, {4, 4}}}, DType::kBF16));
  ranks.push_back(Rank({{{1, 0}, {-1e8f, 3}}}));
  const RankGradients sum = SumRanks(std::move(ranks));
  ASSERT_EQ(sum.size(), 2u);
  EXPECT_EQ(FromGradient(sum.at({1, 0})), (std::vector<float>{0, 6})) << "(1e8 + 1) - 1e8 is 0 in fp32; any other order gives 1";
  EXPECT_EQ(FromGradient(sum.at({2, 5})), (std::vector<float>{4, 4}));
  EXPECT_EQ(BytesOf(sum), 2 * 4u + 2 * 2u);
}

TEST(Gradients, SumOfSquaresIsExactOnIntegers) {
  std::vector<float> values;
  double expected = 0;
  for (int i = 0; i < 10007; ++i) values.push_back(static_cast<float>(i % 101 - 50)), expected += double(values.back()) * values.back();
  EXPECT_EQ(SumOfSquares(ToGradient(values, DType::kF32)), expected);
  EXPECT_EQ(SumOfSquares(ToGradient(values, DType::kBF16)), expected);
}

TEST(Gradients, TheFirstElementThatIsNotFiniteIsNamed) {
  for (DType dtype : {DType::kF32, DType::kBF16}) {
    for (float bad : {std::nanf(""), -INFINITY, INFINITY}) {
      std::vector<float> values(10000, -3e38f);
      EXPECT_TRUE(CheckFinite(dtype, ToGradient(values, dtype).bytes.span()).ok());
      values[9000] = values[8777] = bad;
      const absl::Status status = CheckFinite(dtype, ToGradient(values, dtype).bytes.span());
      EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
      EXPECT_NE(std::string(status.message()).find("element 8777"), std::string::npos) << status;
    }
  }
}

}  // namespace
}  // namespace membank
