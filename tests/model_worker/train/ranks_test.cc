// Several ranks of one run, each a trainer on a thread of its own, over in-process shards; int8 gradients.
#include <filesystem>
#include <memory>
#include <thread>

#include "common/bank/gradient_codec.h"
#include "common/base/file.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "model_worker/train/trainer.h"
#include "nlohmann/json.hpp"
#include "tests/testing/shard_memory_client.h"
#include "tests/testing/tiny_run.h"

namespace membank {
namespace {

using testing_support::ShardMemoryClient;
using testing_support::TinyRun;
using ::testing::HasSubstr;

const std::atomic<bool> kNeverStop{false};

std::vector<double> Losses(const TrainOptions& options) {
  std::vector<double> losses;
  const std::string text = *ReadFile(options.output + "/log.jsonl");
  for (size_t begin = 0, end; (end = text.find('\n', begin)) != std::string::npos; begin = end + 1)
    losses.push_back(nlohmann::json::parse(text.substr(begin, end - begin)).at("loss"));
  return losses;
}

class RanksTest : public ::testing::Test {
 protected:
  void SetUp() override { run_.WriteCorpus(TinyRun::RandomSequences(10, 4)); }

  std::unique_ptr<ShardMemoryClient> NewBank(const std::string& name) {
    return std::make_unique<ShardMemoryClient>(run_.spec(), run_.path() + "/bank-" + name, 2);
  }
  TrainOptions Options(const std::string& output) {
    TrainOptions options = run_.Options(output);
    options.rank_timeout_seconds = 20;
    return options;
  }
  // All ranks at once; `adjust` may change a rank's options.
  std::vector<absl::StatusOr<TrainSummary>> TrainRanks(const TrainOptions& options, uint32_t world_size, ShardMemoryClient& bank,
                                                       const std::atomic<bool>& stop_last = kNeverStop,
                                                       const std::function<void(TrainOptions*)>& adjust = [](TrainOptions*) {}) {
    std::vector<absl::StatusOr<TrainSummary>> results(world_size, absl::UnknownError(""));
    std::vector<std::thread> threads;
    for (uint32_t rank = 0; rank < world_size; ++rank) {
      threads.emplace_back([&, rank] {
        TrainOptions own = options;
        own.rank = rank;
        own.world_size = world_size;
        adjust(&own);
        results[rank] = Train(own, bank, rank + 1 == world_size ? stop_last : kNeverStop);
      });
    }
    for (std::thread& thread : threads) thread.join();
    return results;
  }

  TinyRun run_;
};

// In fp32 the parts of the ranks are what micro-batches of one rank are, added in the same order: not a bit differs.
TEST_F(RanksTest, TwoRanksEqualOneRankWithTheWholeBatch) {
  for (const bool control : {false, true}) {
    TrainOptions one = Options(control ? "one-control" : "one");
    one.generic_control = control;
    one.micro_batch_sequences = control ? 4 : 2;
    auto bank_of_one = NewBank(one.output.substr(one.output.rfind('/') + 1));
    ASSERT_TRUE(Train(one, *bank_of_one, kNeverStop).ok());
    TrainOptions two = one;
    two.output += "-two";
    two.micro_batch_sequences = 0;
    auto bank_of_two = NewBank(two.output.substr(two.output.rfind('/') + 1));
    for (const auto& result : TrainRanks(two, 2, *bank_of_two)) ASSERT_TRUE(result.ok()) << result.status();
    EXPECT_EQ(Losses(two), Losses(one));
    EXPECT_EQ(bank_of_two->Dump(), bank_of_one->Dump());
  }
}

TEST_F(RanksTest, FourRanksAndStalenessTrainToo) {
  TrainOptions options = Options("four");
  options.steps = 40;
  options.staleness = 3;
  auto bank = NewBank("four");
  for (const auto& result : TrainRanks(options, 4, *bank)) ASSERT_TRUE(result.ok()) << result.status();
  const std::vector<double> losses = Losses(options);
  ASSERT_EQ(losses.size(), 40u);
  EXPECT_LT(losses.back(), 0.85 * losses.front());
}

TEST_F(RanksTest, OneRequestToStopStopsAllAfterTheSameStepAndTheyGoOnTogether) {
  TrainOptions whole = Options("whole");
  auto expected = NewBank("whole");
  for (const auto& result : TrainRanks(whole, 2, *expected)) ASSERT_TRUE(result.ok()) << result.status();

  TrainOptions options = Options("stopped");
  auto bank = NewBank("stopped");
  const std::atomic<bool> stop{true};
  const auto stopped = TrainRanks(options, 2, *bank, stop);
  for (const auto& result : stopped) ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(stopped[0]->steps_done, 2u);  // asked with the first push, heard by all before the second
  EXPECT_EQ(stopped[1]->steps_done, 2u);
  bank->Crash();
  for (const auto& result : TrainRanks(options, 2, *bank)) ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(Losses(options), Losses(whole));
  EXPECT_EQ(bank->Dump(), expected->Dump());
}

TEST_F(RanksTest, RanksWithOtherSettingsAreRefused) {
  TrainOptions options = Options("differs");
  options.rank_timeout_seconds = 2;
  auto bank = NewBank("differs");
  const auto results = TrainRanks(options, 2, *bank, kNeverStop, [](TrainOptions* own) {
    if (own->rank == 1) own->learning_rate = 0.5;
  });
  EXPECT_EQ(results[1].status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(results[1].status().message()), HasSubstr("learning-rate was 0.01, is now 0.5"));
  EXPECT_THAT(std::string(results[0].status().message()), HasSubstr("ranks 1 (of 2)"));
}

TEST_F(RanksTest, WhatRanksCannotDoIsRefused) {
  auto bank = NewBank("refused");
  TrainOptions options = Options("refused");
  options.world_size = 2;
  options.mode = TrainMode::kCotrain;
  EXPECT_THAT(std::string(Train(options, *bank, kNeverStop).status().message()), HasSubstr("say where rank 0 is with --master-addr"));
  options.mode = TrainMode::kFrozen;
  options.rank = 2;
  EXPECT_THAT(std::string(Train(options, *bank, kNeverStop).status().message()), HasSubstr("--rank is 2; allowed: 0 to 1"));
  options.rank = 0;
  options.batch_sequences = 1;
  EXPECT_THAT(std::string(Train(options, *bank, kNeverStop).status().message()), HasSubstr("--batch-sequences is 1 for --world-size 2"));
}

// Half the bytes of bf16 and the same learning: every loss within 1 % of the bf16 run's, with error feedback.
TEST_F(RanksTest, Int8GradientsLearnAsBf16WithHalfTheBytes) {
  const auto train = [&](DType dtype) {
    TrainOptions options = Options(std::string(GradientDTypeName(dtype)));
    options.steps = 60;
    options.gradient_dtype = dtype;
    auto bank = NewBank(std::string(GradientDTypeName(dtype)));
    const auto summary = Train(options, *bank, kNeverStop);
    EXPECT_TRUE(summary.ok()) << summary.status();
    return std::pair(Losses(options), static_cast<double>(summary->pushed_bytes));
  };
  const auto [bf16, bf16_bytes] = train(DType::kBF16);
  const auto [int8, int8_bytes] = train(kI8Rows);
  for (size_t step = 0; step < bf16.size(); ++step) EXPECT_NEAR(int8[step], bf16[step], 0.01 * bf16[step]) << "step " << step + 1;
  EXPECT_LT(int8.back(), 0.8 * int8.front());
  EXPECT_NEAR(int8_bytes / bf16_bytes, 0.5 * (1 + 4.0 / run_.spec().hidden), 1e-6);
}

// What int8 left behind is part of a checkpoint, and follows the run to another number of ranks.
TEST_F(RanksTest, ErrorFeedbackSurvivesACrash) {
  TrainOptions whole = Options("feedback-whole");
  whole.gradient_dtype = kI8Rows;
  auto expected = NewBank("feedback-whole");
  for (const auto& result : TrainRanks(whole, 2, *expected)) ASSERT_TRUE(result.ok()) << result.status();

  TrainOptions options = whole;
  options.output = Options("feedback").output;
  options.rank_timeout_seconds = 2;
  auto bank = NewBank("feedback");
  int applied = 0;
  bank->intercept = [&](const std::string& call) {
    return call == "ApplyStep" && ++applied > 14 ? absl::InternalError("the servers are gone") : absl::OkStatus();  // two servers: in step 8
  };
  for (const auto& result : TrainRanks(options, 2, *bank)) ASSERT_FALSE(result.ok());
  bank->intercept = nullptr;
  bank->Crash();
  for (const uint32_t saver : {0, 1}) {
    bool found = false;
    for (const auto& entry : std::filesystem::recursive_directory_iterator(options.output))
      found |= entry.path().filename() == fmt::format("error_feedback-{}.safetensors", saver);
    EXPECT_TRUE(found) << saver;
  }
  const auto resumed = TrainRanks(options, 2, *bank);
  for (const auto& result : resumed) ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(resumed[0]->resumed_from, 5u);
  EXPECT_EQ(Losses(options), Losses(whole));
  EXPECT_EQ(bank->Dump(), expected->Dump());
}

}  // namespace
}  // namespace membank
