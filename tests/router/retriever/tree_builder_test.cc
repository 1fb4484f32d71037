#include "router/retriever/tree_builder.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <set>

#include "common/base/file.h"
#include "nlohmann/json.hpp"
#include "router/retriever/retriever.h"

namespace membank {
namespace {

using ::testing::HasSubstr;

// The same generator and lines as tests/golden/kmeans.py.
class Generator {
 public:
  explicit Generator(uint64_t seed) : state_(seed) {}
  double Unit() {
    state_ += 0x9E3779B97F4A7C15;
    uint64_t z = state_;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB;
    return static_cast<double>((z ^ (z >> 31)) >> 11) / static_cast<double>(uint64_t{1} << 53);
  }
  double Normal() {
    double sum = 0;
    for (int i = 0; i < 12; ++i) sum += Unit();
    return sum - 6;
  }

 private:
  uint64_t state_;
};

std::vector<float> Examples(uint32_t k, uint32_t dimension, uint32_t per_leaf) {
  Generator generator(7);
  std::vector<float> rows;
  for (uint32_t g = 0; g < k; ++g) {
    std::vector<double> group(dimension), leaf(dimension);
    for (double& value : group) value = 4 * generator.Normal();
    for (uint32_t l = 0; l < k; ++l) {
      for (uint32_t i = 0; i < dimension; ++i) leaf[i] = group[i] + 1.5 * generator.Normal();
      for (uint32_t e = 0; e < per_leaf; ++e) {
        for (uint32_t i = 0; i < dimension; ++i) rows.push_back(static_cast<float>(leaf[i] + 0.5 * generator.Normal()));
      }
    }
  }
  return rows;
}

ClusterTree Fit(const std::vector<float>& rows, uint32_t dimension, uint32_t k, uint32_t depth, uint64_t seed = 1) {
  TreeOptions options;
  options.fan_out = k;
  options.depth = depth;
  options.seed = seed;
  auto tree = FitTree({rows.data(), dimension}, rows.size() / dimension, options, {});
  EXPECT_TRUE(tree.ok()) << tree.status();
  return *std::move(tree);
}

struct Quality {
  double inertia = 0, largest_share = 0;
};

std::vector<Quality> Judge(const ClusterTree& tree, const std::vector<float>& rows) {
  std::vector<Quality> levels(tree.depth());
  const size_t count = rows.size() / tree.dimension();
  for (uint32_t level = 1; level <= tree.depth(); ++level) {
    std::vector<double> sizes(ClusterCount(tree.fan_out(), level));
    for (size_t i = 0; i < count; ++i) {
      const auto steps = *tree.Descend(absl::MakeConstSpan(rows).subspan(i * tree.dimension(), tree.dimension()));
      levels[level - 1].inertia += steps[level - 1].distance;
      levels[level - 1].largest_share = std::max(levels[level - 1].largest_share, ++sizes[steps[level - 1].cluster] / count);
    }
  }
  return levels;
}

TEST(TreeBuilder, AsGoodAsScikitLearnLevelByLevelAndBalanced) {
  const auto cases = nlohmann::json::parse(*ReadFile(std::string(std::getenv("MEMBANK_SOURCE_DIR")) + "/tests/golden/kmeans.json"));
  for (const auto& golden : cases) {
    const uint32_t k = golden.at("fan_out"), dimension = golden.at("dimension");
    const std::vector<float> rows = Examples(k, dimension, golden.at("per_leaf"));
    double sum = 0;
    for (const float value : rows) sum += value;
    ASSERT_NEAR(sum, golden.at("sum"), 1e-3) << "the generators differ";
    const auto levels = Judge(Fit(rows, dimension, k, 2), rows);
    for (size_t level = 0; level < 2; ++level) {
      const double reference = golden.at("inertia")[level];
      EXPECT_LE(levels[level].inertia, 1.05 * reference) << "k " << k << " level " << level + 1;
      printf("k %u level %zu: inertia %.4f of scikit-learn's (target 1.05), largest share %.4f\n", k, level + 1, levels[level].inertia / reference,
             levels[level].largest_share);
    }
    EXPECT_LE(levels[0].largest_share, 1.5 / k);
  }
}

TEST(TreeBuilder, SplitsAClusterThatTakesMoreThanItsShare) {
  // 80 of 100 examples in one tight group: plain k-means gives it few centroids; none of ours may keep more than 1.5 / k.
  Generator generator(3);
  std::vector<float> rows;
  for (int i = 0; i < 1000; ++i) {
    const double center = i < 800 ? 0 : 10.0 + i % 3 * 10;
    for (int j = 0; j < 8; ++j) rows.push_back(static_cast<float>(center + 0.3 * generator.Normal()));
  }
  const auto levels = Judge(Fit(rows, 8, 8, 1), rows);
  EXPECT_LE(levels[0].largest_share, 1.5 / 8 + 0.05);
}

TEST(TreeBuilder, SampledStepsFitANodeLargerThanOneStep) {
  const std::vector<float> rows = Examples(8, 16, 100);  // 6,400 rows
  TreeOptions options;
  options.fan_out = 8;
  options.depth = 1;
  options.examples_per_step = 800;
  auto sampled = FitTree({rows.data(), 16}, rows.size() / 16, options, {});
  ASSERT_TRUE(sampled.ok());
  const auto whole = Judge(Fit(rows, 16, 8, 1), rows), parts = Judge(*sampled, rows);
  EXPECT_LE(parts[0].inertia, 1.05 * whole[0].inertia);
}

TEST(TreeBuilder, SameSeedSameTree) {
  const std::vector<float> rows = Examples(8, 16, 5);
  EXPECT_EQ(Fit(rows, 16, 8, 2, 5).Fingerprint(), Fit(rows, 16, 8, 2, 5).Fingerprint());
  EXPECT_NE(Fit(rows, 16, 8, 2, 5).Fingerprint(), Fit(rows, 16, 8, 2, 6).Fingerprint());
}

TEST(TreeBuilder, TinyCorporaKeepEveryRowRealAndDistinctTextsApart) {
  for (const size_t count : {size_t{1}, size_t{2}, size_t{5}, size_t{30}}) {
    Generator generator(count);
    std::vector<float> rows;
    for (size_t i = 0; i < count * 12; ++i) rows.push_back(static_cast<float>(generator.Normal()));
    const ClusterTree tree = Fit(rows, 12, 8, 2);
    std::set<uint32_t> leaves;
    for (size_t i = 0; i < count; ++i) {
      const absl::Span<const float> row = absl::MakeConstSpan(rows).subspan(i * 12, 12);
      const auto steps = *tree.Descend(row);
      leaves.insert(steps[1].cluster);
    }
    // 30 examples are at most 6 to a node of level 1 or nearly so: each finds a leaf of its own, or shares it with few.
    EXPECT_GE(leaves.size(), count <= 8 ? count : 20) << count;
    // Whatever is asked, the answer is a leaf that holds an example.
    for (int query = 0; query < 200; ++query) {
      std::vector<float> embedding(12);
      for (float& value : embedding) value = static_cast<float>(2 * generator.Normal());
      EXPECT_TRUE(leaves.contains((*tree.Descend(embedding))[1].cluster)) << count;
    }
  }
}

TEST(TreeBuilder, EqualExamplesShareALeaf) {
  std::vector<float> rows;
  for (int i = 0; i < 40; ++i) rows.insert(rows.end(), {static_cast<float>(i % 3), 1, 0, 0});
  const ClusterTree tree = Fit(rows, 4, 8, 3);
  std::set<uint32_t> leaves;
  for (int i = 0; i < 40; ++i) leaves.insert(tree.Descend(absl::MakeConstSpan(rows).subspan(i * 4, 4))->back().cluster);
  EXPECT_EQ(leaves.size(), 3u);
}

TEST(TreeBuilder, RefusesWhatCannotBeFitted) {
  const std::vector<float> rows = {1, 2, 3, NAN};
  const auto message = [&](TreeOptions options, size_t count) { return std::string(FitTree({rows.data(), 2}, count, options, {}).status().message()); };
  EXPECT_THAT(message({.fan_out = 1}, 1), HasSubstr("fan-out 1 is outside 2..4096"));
  EXPECT_THAT(message({.fan_out = 16, .depth = 9}, 1), HasSubstr("depth 9 is outside 1..8"));
  EXPECT_THAT(message({.fan_out = 16, .depth = 8}, 1), HasSubstr("choose a smaller fan-out or depth"));
  EXPECT_THAT(message({.fan_out = 2, .depth = 1}, 0), HasSubstr("there is no embedding"));
  EXPECT_THAT(message({.fan_out = 2, .depth = 1}, 2), HasSubstr("embedding 1 holds nan"));
}

class FixedEmbedder : public Embedder {
 public:
  uint32_t dimension() const override { return 1; }
  std::string Fingerprint() const override { return "fixed"; }
  absl::StatusOr<std::vector<std::vector<float>>> Embed(const std::vector<std::string>& texts) override {
    std::vector<std::vector<float>> embeddings;
    for (const std::string& text : texts) embeddings.push_back({static_cast<float>(text.size())});
    return embeddings;
  }
};

TEST(Retriever, ResolvesTextsAndRefusesATreeOfAnotherEmbedder) {
  auto retriever = Retriever::Create(std::make_unique<FixedEmbedder>(), *ClusterTree::Create(2, 1, {{1, 10}}, {{"embedder", "fixed"}}));
  ASSERT_TRUE(retriever.ok());
  auto resolutions = (*retriever)->Resolve({"a", "a longer text"});
  ASSERT_TRUE(resolutions.ok());
  EXPECT_EQ((*resolutions)[0].path, (BlockPath{MemoryMode::kFetched, 1, 0}));
  EXPECT_EQ((*resolutions)[1].path, (BlockPath{MemoryMode::kFetched, 1, 1}));
  EXPECT_EQ((*resolutions)[1].steps[0].distance, 9);
  const auto other = Retriever::Create(std::make_unique<FixedEmbedder>(), *ClusterTree::Create(2, 1, {{1, 10}}, {{"embedder", "other"}}));
  EXPECT_EQ(other.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(other.status().message()), HasSubstr("fitted with embedder other, but the embedder given is fixed"));
}

}  // namespace
}  // namespace membank
