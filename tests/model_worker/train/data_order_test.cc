#include "model_worker/train/data_order.h"

#include <algorithm>
#include <set>

#include "gtest/gtest.h"
#include "model_worker/train/loss_chart.h"

namespace membank {
namespace {

std::vector<uint64_t> Epoch(DataOrder& order, uint64_t epoch, uint64_t size) {
  std::vector<uint64_t> indices;
  for (uint64_t i = 0; i < size; ++i) indices.push_back(order.IndexOf(epoch * size + i));
  return indices;
}

TEST(DataOrder, EveryEpochIsAnotherPermutation) {
  DataOrder order(1, 100, 0);
  const auto first = Epoch(order, 0, 100), second = Epoch(order, 1, 100);
  EXPECT_NE(first, second);
  EXPECT_EQ(std::set<uint64_t>(first.begin(), first.end()).size(), 100u);
  EXPECT_EQ(std::set<uint64_t>(second.begin(), second.end()).size(), 100u);
  EXPECT_FALSE(std::is_sorted(first.begin(), first.end()));
}

TEST(DataOrder, IsAFunctionOfSeedAndPositionAlone) {
  DataOrder a(5, 37, 0.5), b(5, 37, 0.5), other(6, 37, 0.5);
  const auto straight = Epoch(a, 3, 37);
  b.IndexOf(1000);  // jumping about changes nothing
  EXPECT_EQ(Epoch(b, 3, 37), straight);
  EXPECT_NE(Epoch(other, 3, 37), straight);
  DataOrder one(1, 1, 0);
  EXPECT_EQ(one.IndexOf(7), 0u);
}

TEST(DataOrder, GenericShareIsTheProbability) {
  DataOrder order(2, 10, 1.0 / 17), never(2, 10, 0), always(2, 10, 1);
  int generic = 0;
  for (uint64_t sample = 0; sample < 17000; ++sample) {
    generic += order.UsesGeneric(sample);
    EXPECT_FALSE(never.UsesGeneric(sample));
    EXPECT_TRUE(always.UsesGeneric(sample));
  }
  EXPECT_NEAR(generic, 1000, 130);  // four standard deviations
}

TEST(LossChart, HasAxesLegendAndOneLinePerSeries) {
  LossSeries long_series{"fetched memory", "#111", {}, {}};
  for (int step = 1; step <= 5000; ++step) {
    long_series.steps.push_back(step);
    long_series.losses.push_back(3.0 / step + 1);
  }
  const std::string svg = DrawLossChart("a < b", {long_series, {"empty", "#222", {}, {}}, {"one", "#333", {10}, {2}}});
  EXPECT_NE(svg.find("a &lt; b"), std::string::npos);
  EXPECT_NE(svg.find("fetched memory"), std::string::npos);
  EXPECT_EQ(svg.find("empty"), std::string::npos);
  EXPECT_NE(svg.find(">5000<"), std::string::npos);
  EXPECT_LT(svg.size(), 20000u);  // averaged, not 5,000 points
  EXPECT_EQ(svg.find("nan"), std::string::npos);
}

}  // namespace
}  // namespace membank
