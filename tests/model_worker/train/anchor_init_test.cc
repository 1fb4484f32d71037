#include "model_worker/train/anchor_init.h"

#include <filesystem>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "model_worker/model/weights.h"
#include "model_worker/train/trainer.h"
#include "tests/testing/shard_memory_client.h"
#include "tests/testing/tiny_run.h"

namespace membank {
namespace {

using testing_support::ShardMemoryClient;
using testing_support::TinyRun;
using ::testing::HasSubstr;

class AnchorInitTest : public ::testing::Test {
 protected:
  AnchorInitOptions Options(const std::string& name, uint64_t seed = 1) {
    return {.config = "tiny", .tokenizer = run_.anchor(), .seed = seed, .output = run_.path() + "/" + name};
  }
  AnchorWeights Make(const AnchorInitOptions& options) {
    const auto made = InitAnchor(options);
    EXPECT_TRUE(made.ok()) << made.status();
    auto loaded = LoadAnchor(options.output, torch::kFloat);
    EXPECT_TRUE(loaded.ok()) << loaded.status();
    return *std::move(loaded);
  }

  TinyRun run_;
};

TEST_F(AnchorInitTest, SameSeedSameWeightsOtherSeedOthers) {
  const AnchorWeights a = Make(Options("a")), b = Make(Options("b")), c = Make(Options("c", 2));
  EXPECT_EQ(a.fingerprint, b.fingerprint);
  EXPECT_NE(a.fingerprint, c.fingerprint);
  EXPECT_FALSE(torch::equal(a.layers[0].q, a.layers[0].k));
  AnchorInitOptions half = Options("half");
  half.dtype = DType::kBF16;
  EXPECT_TRUE(torch::equal(Make(half).layers[3].down, a.layers[3].down.to(torch::kBFloat16).to(torch::kFloat)));
}

TEST_F(AnchorInitTest, MatricesAreTruncatedNormalAndResidualOnesShrinkWithDepth) {
  const AnchorWeights anchor = Make(Options("moments"));
  const auto check = [](const torch::Tensor& w, double sigma) {
    // A normal distribution cut at three standard deviations has 0.9866 of them.
    EXPECT_NEAR(w.std().item<double>(), 0.9866 * sigma, 0.02 * sigma);
    EXPECT_NEAR(w.mean().item<double>(), 0, 5 * sigma / std::sqrt(w.numel()));
    EXPECT_LE(w.abs().max().item<double>(), 3 * sigma * (1 + 1e-6));
    EXPECT_GT(w.abs().max().item<double>(), 2.8 * sigma);  // and not before
  };
  const double by_hidden = 1 / std::sqrt(128.0), by_inner = 1 / std::sqrt(384.0);
  check(anchor.embedding, by_hidden);
  for (int64_t l = 0; l < 4; ++l) {
    const double depth = std::sqrt(2.0 * (l + 1));
    check(anchor.layers[l].q, by_hidden);
    check(anchor.layers[l].gate, by_hidden);
    check(anchor.layers[l].o, by_hidden / depth);
    check(anchor.layers[l].down, by_inner / depth);
    EXPECT_TRUE(torch::equal(anchor.layers[l].input_norm, torch::ones({128})));
  }
}

// Every architecture that can be read can be made; what is saved is what was drawn.
TEST_F(AnchorInitTest, EveryArchitectureBegins) {
  const std::string goldens = std::string(std::getenv("MEMBANK_SOURCE_DIR")) + "/tests/golden/model/architectures";
  int made = 0;
  for (const auto& entry : std::filesystem::directory_iterator(goldens)) {
    if (!entry.is_directory()) continue;
    AnchorInitOptions options = Options("arch-" + entry.path().filename().string());
    options.config = entry.path().string() + "/config.json";
    options.vocabulary = 300;
    const AnchorWeights anchor = Make(options);
    EXPECT_EQ(anchor.config.vocab, 300) << entry.path();
    Transformer model(anchor, false);
    RaggedBatch batch;
    batch.tokens = torch::arange(3, 19, torch::kLong);
    batch.segments = {{0, 16, nullptr}};
    const double loss = model.Loss(model.Forward(batch), batch.tokens.roll(-1)).item<double>();
    EXPECT_TRUE(loss > 3 && loss < 9) << entry.path() << ": " << loss;   // about ln 300 = 5.7
    ++made;
  }
  EXPECT_GE(made, 6);
}

TEST_F(AnchorInitTest, PresetsHaveTheParametersTheyShould) {
  EXPECT_EQ(*CountAnchorParameters("tiny"), 512 * 128 + 4 * (4 * 128 * 128 + 3 * 128 * 384 + 2 * 128) + 128);
  EXPECT_EQ(*CountAnchorParameters("openlm-160m"), 163'510'016u);   // the paper's table
  EXPECT_EQ(*CountAnchorParameters("openlm-410m"), 411'665'408u);
  EXPECT_EQ(*CountAnchorParameters("openlm-1.4b"), 1'439'893'504u);
  EXPECT_EQ(InitAnchor(Options("count"))->parameters, *CountAnchorParameters("tiny"));
}

TEST_F(AnchorInitTest, WhatDoesNotFitIsNamedAndNothingIsWritten) {
  const auto expect = [&](const AnchorInitOptions& options, const char* text) {
    const absl::Status status = InitAnchor(options).status();
    EXPECT_THAT(std::string(status.message()), HasSubstr(text));
    EXPECT_FALSE(std::filesystem::exists(options.output));
  };
  AnchorInitOptions options = Options("refused");
  options.config = "huge";
  expect(options, "--config huge is neither a file nor one of tiny, small, openlm-160m");
  options = Options("refused");
  options.vocabulary = 100;
  expect(options, "has 259 tokens; the configuration's vocabulary is 100. Give --vocabulary 259 or more");
  options = Options("refused");
  options.dtype = DType::kF16;
  expect(options, "allowed: bf16, fp32");
  EXPECT_EQ(InitAnchor({.config = "tiny", .tokenizer = run_.anchor(), .output = run_.anchor()}).status().code(), absl::StatusCode::kAlreadyExists);
}

// From scratch: a bank co-trained with a new anchor is a co-training like any other.
TEST_F(AnchorInitTest, ANewAnchorTrainsFromScratchWithABank) {
  AnchorInitOptions options = Options("scratch");
  const AnchorWeights anchor = Make(options);
  run_.spec().anchor_fingerprint = anchor.fingerprint;
  run_.spec().layers = 4;
  run_.spec().hidden = 128;
  run_.WriteCorpus(TinyRun::RandomSequences(10, 4));
  TrainOptions train = run_.Options("run");
  train.anchor_path = options.output;
  train.mode = TrainMode::kCotrain;
  train.steps = 30;
  ShardMemoryClient bank(run_.spec(), run_.path() + "/bank", 1);
  const std::atomic<bool> never{false};
  const auto summary = Train(train, bank, never);
  ASSERT_TRUE(summary.ok()) << summary.status();
  EXPECT_LT(summary->loss, 4.0);  // from ln 512 = 6.2
}

}  // namespace
}  // namespace membank
