#include "model_worker/serve/sampler.h"

#include <cmath>

#include "gtest/gtest.h"

namespace membank {
namespace {

std::vector<double> Frequencies(const SamplingParameters& parameters, const std::vector<float>& logits, int draws = 40000) {
  Sampler sampler(parameters);
  std::vector<double> counts(logits.size());
  for (int i = 0; i < draws; ++i) counts[sampler.Sample(logits)] += 1.0 / draws;
  return counts;
}

TEST(SamplerTest, GreedyTakesTheLowestOfEqualLogits) {
  std::vector<float> logits(100, -1.0f);
  logits[37] = logits[80] = 2.0f;
  EXPECT_EQ(Sampler({}).Sample(logits), 37);
  EXPECT_EQ(ArgMax(logits), 37);
}

TEST(SamplerTest, DrawsFollowTheSoftmax) {
  SamplingParameters parameters;
  parameters.temperature = 2;
  const std::vector<float> logits = {1, 3, 0, -2};
  double total = 0;
  for (float logit : logits) total += std::exp(logit / 2);
  const std::vector<double> seen = Frequencies(parameters, logits);
  for (size_t i = 0; i < logits.size(); ++i) EXPECT_NEAR(seen[i], std::exp(logits[i] / 2) / total, 0.01) << i;
}

TEST(SamplerTest, TopKAndTopPCutTheTail) {
  SamplingParameters parameters;
  parameters.temperature = 1;
  parameters.top_k = 2;
  const std::vector<float> logits = {std::log(0.5f), std::log(0.3f), std::log(0.15f), std::log(0.05f)};
  std::vector<double> seen = Frequencies(parameters, logits);
  EXPECT_NEAR(seen[0], 0.625, 0.01);
  EXPECT_NEAR(seen[1], 0.375, 0.01);
  EXPECT_EQ(seen[2] + seen[3], 0);

  parameters.top_k = 0;
  parameters.top_p = 0.9;
  seen = Frequencies(parameters, logits);
  EXPECT_NEAR(seen[0], 0.5 / 0.95, 0.01);
  EXPECT_NEAR(seen[2], 0.15 / 0.95, 0.01);
  EXPECT_EQ(seen[3], 0);
}

// The flat distribution needs more candidates for top_p than are sorted first.
TEST(SamplerTest, TopPOverAFlatVocabulary) {
  SamplingParameters parameters;
  parameters.temperature = 1;
  parameters.top_p = 0.5;
  const std::vector<float> logits(5000, 0.0f);
  Sampler sampler(parameters);
  int largest = 0;
  for (int i = 0; i < 300; ++i) largest = std::max(largest, sampler.Sample(logits));
  EXPECT_GT(largest, 1024);
  EXPECT_LT(largest, 2501);
}

TEST(SamplerTest, TheSeedDecides) {
  SamplingParameters parameters;
  parameters.temperature = 1;
  parameters.seed = 42;
  const std::vector<float> logits(50, 0.0f);
  auto draw = [&] {
    Sampler sampler(parameters);
    std::vector<int32_t> ids;
    for (int i = 0; i < 20; ++i) ids.push_back(sampler.Sample(logits));
    return ids;
  };
  const std::vector<int32_t> first = draw();
  EXPECT_EQ(draw(), first);
  parameters.seed = 43;
  EXPECT_NE(draw(), first);
}

TEST(SamplerTest, TopLogprobsAreSorted) {
  const std::vector<float> logits = {0, 2, 1, 2};
  const std::vector<TokenAlternative> top = TopLogprobs(logits, 3.0f, 3);
  ASSERT_EQ(top.size(), 3);
  EXPECT_EQ(top[0].id, 1);
  EXPECT_EQ(top[1].id, 3);
  EXPECT_EQ(top[2].id, 2);
  EXPECT_FLOAT_EQ(top[0].logprob, -1);
}

TEST(SamplerTest, NotANumberIsNoMaximum) {
  EXPECT_FALSE(std::isfinite(MaxLogit(std::vector<float>(40, std::nanf("")))));
}

TEST(SamplerTest, ParametersOutOfRangeAreNamed) {
  auto message = [](auto change) {
    SamplingParameters parameters;
    change(parameters);
    const absl::Status status = parameters.Validate(100);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    return std::string(status.message());
  };
  EXPECT_NE(message([](auto& p) { p.temperature = -1; }).find("temperature is -1"), std::string::npos);
  EXPECT_NE(message([](auto& p) { p.temperature = std::nanf(""); }).find("temperature"), std::string::npos);
  EXPECT_NE(message([](auto& p) { p.top_p = 1.5; }).find("top_p is 1.5"), std::string::npos);
  EXPECT_NE(message([](auto& p) { p.logprobs = 21; }).find("0 to 20"), std::string::npos);
  EXPECT_NE(message([](auto& p) { p.stop = {""}; }).find("1 to 256"), std::string::npos);
  EXPECT_NE(message([](auto& p) { p.stop = {"\xff"}; }).find("UTF-8"), std::string::npos);
  EXPECT_NE(message([](auto& p) { p.stop_tokens = {100}; }).find("stop token 100"), std::string::npos);
  EXPECT_NE(message([](auto& p) { p.stop.assign(17, "x"); }).find("17 stop strings"), std::string::npos);
}

}  // namespace
}  // namespace membank
