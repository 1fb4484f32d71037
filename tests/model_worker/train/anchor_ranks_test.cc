// Several ranks that train an anchor, each a trainer on a thread of its own: the numbers of one rank, optimizer state that is spread and comes back
// together, ranks that are missing.
#include <arpa/inet.h>
#include <sys/socket.h>
#include <unistd.h>

#include <filesystem>
#include <functional>
#include <memory>
#include <thread>

#include "common/base/file.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "model_worker/model/weights.h"
#include "model_worker/train/anchor_parameters.h"
#include "model_worker/train/trainer.h"
#include "nlohmann/json.hpp"
#include "tests/testing/shard_memory_client.h"
#include "tests/testing/tiny_run.h"

namespace membank {
namespace {

using testing_support::ShardMemoryClient;
using testing_support::TinyRun;
using ::testing::DoubleNear;
using ::testing::HasSubstr;
using ::testing::Pointwise;

const std::atomic<bool> kNeverStop{false};

uint16_t FreePort() {
  const int listener = socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  EXPECT_EQ(bind(listener, reinterpret_cast<sockaddr*>(&address), sizeof(address)), 0);
  socklen_t size = sizeof(address);
  EXPECT_EQ(getsockname(listener, reinterpret_cast<sockaddr*>(&address), &size), 0);
  close(listener);
  return ntohs(address.sin_port);
}

class AnchorRanksTest : public ::testing::TestWithParam<TrainMode> {
 protected:
  void SetUp() override { run_.WriteCorpus(TinyRun::RandomSequences(10, 4)); }

  TrainOptions Options(const std::string& output) {
    TrainOptions options = run_.Options(output);
    options.mode = GetParam();
    options.z_loss = 1e-3;
    options.rank_timeout_seconds = 20;
    return options;
  }
  ShardMemoryClient* BankOf(const TrainOptions& options) {
    auto& bank = banks_[options.output];
    if (bank == nullptr && options.HasBank()) bank = std::make_unique<ShardMemoryClient>(run_.spec(), options.output + "-bank", 2);
    return bank.get();
  }
  // All ranks at once.
  std::vector<absl::StatusOr<TrainSummary>> TrainRanks(const TrainOptions& options, uint32_t world_size, const std::atomic<bool>& stop_last = kNeverStop) {
    std::vector<absl::StatusOr<TrainSummary>> results(world_size, absl::UnknownError(""));
    std::vector<std::thread> threads;
    ShardMemoryClient* const bank = BankOf(options);
    const uint16_t port = FreePort();
    for (uint32_t rank = 0; rank < world_size; ++rank) {
      threads.emplace_back([&, rank] {
        TrainOptions own = options;
        own.rank = rank;
        own.world_size = world_size;
        own.master_address = "127.0.0.1";
        own.master_port = port;
        const std::atomic<bool>& stop = rank + 1 == world_size ? stop_last : kNeverStop;
        results[rank] = bank != nullptr ? Train(own, *bank, stop) : TrainAnchorAlone(own, stop);
      });
    }
    for (std::thread& thread : threads) thread.join();
    return results;
  }
  // Trains to the end; every rank must.
  TrainSummary Finish(const TrainOptions& options, uint32_t world_size) {
    const auto results = TrainRanks(options, world_size);
    for (const auto& result : results) EXPECT_TRUE(result.ok()) << result.status();
    EXPECT_TRUE(results[0].ok() && results[0]->finished());
    return results[0].ok() ? *results[0] : TrainSummary();
  }

  static std::vector<double> Losses(const TrainOptions& options, const char* key = "loss") {
    std::vector<double> losses;
    const std::string text = *ReadFile(options.output + "/log.jsonl");
    for (size_t begin = 0, end; (end = text.find('\n', begin)) != std::string::npos; begin = end + 1)
      losses.push_back(nlohmann::json::parse(text.substr(begin, end - begin)).at(key));
    return losses;
  }
  static std::string Checkpoint(const TrainSummary& summary) { return summary.run_directory + "/checkpoints/" + summary.checkpoint; }

  TinyRun run_;
  std::map<std::string, std::unique_ptr<ShardMemoryClient>> banks_;
};

TEST_P(AnchorRanksTest, TwoThreeAndFourRanksGiveTheNumbersOfOne) {
  TrainOptions one = Options("one");
  const TrainSummary expected = Finish(one, 1);
  const AnchorWeights anchor = *LoadAnchor(Checkpoint(expected) + "/anchor", torch::kFloat);
  for (const uint32_t ranks : {2, 3, 4}) {
    TrainOptions many = Options("ranks-" + std::to_string(ranks));
    const TrainSummary summary = Finish(many, ranks);
    EXPECT_THAT(Losses(many), Pointwise(DoubleNear(1e-5), Losses(one))) << ranks;
    EXPECT_THAT(Losses(many, "z_loss"), Pointwise(DoubleNear(1e-5), Losses(one, "z_loss"))) << ranks;
    EXPECT_THAT(Losses(many, "gradient_norm"), Pointwise(DoubleNear(1e-5), Losses(one, "gradient_norm"))) << ranks;
    EXPECT_EQ(Losses(many, "tokens"), Losses(one, "tokens"));
    const AnchorWeights got = *LoadAnchor(Checkpoint(summary) + "/anchor", torch::kFloat);
    for (size_t i = 0; i < anchor.Named().size(); ++i)
      EXPECT_LE((got.Named()[i].second - anchor.Named()[i].second).abs().max().item<double>(), 1e-4) << ranks << " ranks, " << anchor.Named()[i].first;
    // Each rank's part of the optimizer state is a file of its own, about as large as any other.
    uintmax_t whole = std::filesystem::file_size(Checkpoint(expected) + "/anchor_optimizer.safetensors"), sum = 0;
    for (uint32_t rank = 0; rank < ranks; ++rank) {
      const uintmax_t part = std::filesystem::file_size(Checkpoint(summary) + "/anchor_optimizer" + (rank == 0 ? "" : "-" + std::to_string(rank)) + ".safetensors");
      EXPECT_LT(part, 2 * whole / ranks);
      sum += part;
    }
    EXPECT_NEAR(static_cast<double>(sum), static_cast<double>(whole), 0.01 * whole);
  }
}

TEST_P(AnchorRanksTest, StoppedRanksGoOnBitEqualAndInAnyNumber) {
  TrainOptions whole = Options("whole");
  const TrainSummary expected = Finish(whole, 2);
  for (const uint32_t then : {2, 3, 1}) {
    TrainOptions options = Options("then-" + std::to_string(then));
    const std::atomic<bool> stop{true};
    for (const auto& result : TrainRanks(options, 2, stop)) {
      ASSERT_TRUE(result.ok()) << result.status();
      EXPECT_EQ(result->steps_done, 2u);  // asked with the first step, heard by all before the second
    }
    if (options.HasBank()) BankOf(options)->Crash();
    const TrainSummary summary = Finish(options, then);
    EXPECT_EQ(summary.resumed_from, 2u);
    if (then == 2) {
      EXPECT_EQ(Losses(options), Losses(whole));
      EXPECT_EQ(*ReadFile(Checkpoint(summary) + "/anchor/model.safetensors"), *ReadFile(Checkpoint(expected) + "/anchor/model.safetensors"));
    }
    EXPECT_THAT(Losses(options), Pointwise(DoubleNear(1e-5), Losses(whole))) << then;
  }
}

TEST_P(AnchorRanksTest, Bf16WithSpreadMasterWeightsLearnsAsOneRank) {
  TrainOptions one = Options("one");
  one.dtype = DType::kBF16;
  one.steps = 30;
  run_.spec().dtype = DType::kBF16;
  Finish(one, 1);
  TrainOptions two = one;
  two.output += "-two";
  Finish(two, 2);
  EXPECT_THAT(Losses(two), Pointwise(DoubleNear(0.05), Losses(one)));
  EXPECT_LT(Losses(two).back(), 0.6 * Losses(two).front());
}

TEST_P(AnchorRanksTest, RanksThatDoNotComeAreNamed) {
  TrainOptions options = Options("alone");
  options.rank = 1;
  options.world_size = 3;
  options.rank_timeout_seconds = 1;
  options.master_address = "127.0.0.1";
  options.master_port = FreePort();
  const auto train = [&](TrainOptions own) {
    ShardMemoryClient* const bank = BankOf(own);
    return (bank != nullptr ? Train(own, *bank, kNeverStop) : TrainAnchorAlone(own, kNeverStop)).status();
  };
  EXPECT_THAT(std::string(train(options).message()), HasSubstr("rank 1 of 3 waited for rank 0 at 127.0.0.1:"));
  options.rank = 0;
  EXPECT_THAT(std::string(train(options).message()), HasSubstr("rank 0 of 3 waited 1 s for ranks 1, 2 at 127.0.0.1:"));
}

INSTANTIATE_TEST_SUITE_P(Modes, AnchorRanksTest, ::testing::Values(TrainMode::kCotrain, TrainMode::kAnchor),
                         [](const auto& info) { return std::string(TrainModeName(info.param)); });

// 257 gradients of 2^-8 beside one of 1: in bf16 none of them would count.
TEST(AnchorParameters, GradientsOfMicroBatchesAddUpInFp32) {
  torch::Tensor parameter = torch::zeros({4}, torch::kBFloat16).set_requires_grad(true);
  AnchorParameters parameters({{"w", parameter}}, nullptr);
  for (int step = 0; step < 2; ++step) {
    parameter.mutable_grad() = torch::ones_like(parameter);
    parameters.Collect();
    for (int i = 0; i < 257; ++i) {
      parameter.mutable_grad() = torch::full({4}, 1.0 / 256, torch::kBFloat16);
      parameters.Collect();
      EXPECT_FALSE(parameter.grad().defined());
    }
    EXPECT_TRUE(torch::equal(parameters.gradient(0), torch::full({4}, 1 + 257.0 / 256)));
    EXPECT_DOUBLE_EQ(*parameters.FinishSum(1), 4 * (1 + 257.0 / 256) * (1 + 257.0 / 256));
    ASSERT_TRUE(parameters.Share(1).ok());  // the next step begins at zero
  }
}

}  // namespace
}  // namespace membank
