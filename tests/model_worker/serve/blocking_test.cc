// A blocked prefix (promise P6): caches warm, the answer soon equals, bit for bit, the one with those blocks zeroed; what runs with them ends.
#include <atomic>

#include "absl/container/flat_hash_set.h"
#include "tests/model_worker/serve/serve_fixture.h"

namespace membank::serve_test {
namespace {

constexpr absl::Duration kLease = absl::Seconds(1);

class BlockingTest : public ServeTest {
 protected:
  BlockingTest()
      : watch_([this](std::chrono::milliseconds) -> absl::StatusOr<AccessView> {
          if (away_) return Unavailable("no server");
          AccessTable table;
          table.epoch = blocked_ ? 2 : 1;
          if (blocked_) table.SetBlocked({1, 2}, true);
          return AccessView{table, {table.epoch}};
        }, TinySpec().fan_out, kLease) {
    banks_[0].access = &watch_;
  }

  void TearDown() override {
    ServeTest::TearDown();
    engine_.reset();  // before the watch
  }

  // What the memory servers do: the blocks first, then the acknowledgement.
  void BlockPrefix() {
    for (uint32_t cluster : {8u, 9u, 10u, 11u}) memory_.Block({2, cluster});
    memory_.Block({1, 2});
    blocked_ = true;
  }

  std::atomic<bool> blocked_{false}, away_{false};
  AccessWatch watch_;
};

TEST_F(BlockingTest, AWarmCacheAnswersAsWithZerosAfterTheLease) {
  Start();
  auto before = Submit(Task("a question", Leaf(9)));  // one at a time: other rows in a matrix product may change the last bits
  ASSERT_TRUE(before->Wait().ok());
  auto other = Submit(Task("a question", Leaf(1)));
  ASSERT_TRUE(other->Wait().ok());
  const int fetches = memory_.fetches({2, 9});
  auto cached = Submit(Task("a question", Leaf(9)));
  ASSERT_TRUE(cached->Wait().ok());
  EXPECT_EQ(memory_.fetches({2, 9}), fetches) << "the cache is warm";
  BlockPrefix();
  absl::SleepFor(kLease);
  auto after = Submit(Task("a question", Leaf(9)));
  ASSERT_TRUE(after->Wait().ok());
  auto other_after = Submit(Task("a question", Leaf(1)));
  ASSERT_TRUE(other_after->Wait().ok());
  ExpectBitEqual(*other, *other_after);
  EXPECT_NE(*after->tokens()[0].logprob, *before->tokens()[0].logprob);

  engine_.reset();
  FakeMemory zeroed;
  zeroed.Zero({1, 2});
  zeroed.Zero({2, 9});
  auto reference = ModelEngine::Create(std::make_unique<Transformer>(TinyAnchor(), false), {{&zeroed, "v1", nullptr}}, &tokenizer_, Options());
  ASSERT_TRUE(reference.ok()) << reference.status();
  auto expected = std::make_shared<Collector>();
  ASSERT_TRUE((*reference)->Generate(Task("a question", Leaf(9)), expected).ok());
  ASSERT_TRUE(expected->Wait().ok());
  ExpectBitEqual(*after, *expected);
}

TEST_F(BlockingTest, WhatRunsWithABlockedBlockEnds) {
  Start();
  GenerateTask task = Task("go on", Leaf(9));
  task.sampling.max_tokens = 450;
  task.sampling.ignore_eos = true;
  // However fast the machine is: once all have begun, the engine's thread waits for the news.
  constexpr int kSequences = 16;
  absl::flat_hash_set<const Collector*> begun;
  const auto wait_for_news = [&](const Collector* sink) {
    begun.insert(sink);
    for (int i = 0; begun.size() == kSequences && watch_.epoch() < 2 && i < 1000; ++i) absl::SleepFor(kLease / 100);
  };
  std::vector<std::shared_ptr<Collector>> running;
  for (int i = 0; i < kSequences; ++i) running.push_back(Submit(task, wait_for_news));
  for (auto& sink : running) ASSERT_TRUE(sink->WaitForTokens(1));
  BlockPrefix();
  for (auto& sink : running) {
    EXPECT_EQ(sink->Wait().code(), absl::StatusCode::kAborted);
    EXPECT_NE(sink->Wait().message().find("block 1/2 was blocked"), std::string::npos) << sink->Wait();
    EXPECT_LT(sink->tokens().size(), 450u);
  }
}

TEST_F(BlockingTest, WithoutNewsFromTheServersCachedBlocksAreNotUsed) {
  Start();
  ASSERT_TRUE(Submit(Task("warm", Leaf(9)))->Wait().ok());
  away_ = true;
  memory_.Fail({1, 2}, Unavailable("m0 is away"));
  memory_.Fail({2, 9}, Unavailable("m0 is away"));
  absl::SleepFor(2 * kLease);
  EXPECT_EQ(Submit(Task("cached", Leaf(9)))->Wait().code(), absl::StatusCode::kUnavailable);
  EXPECT_TRUE(Submit(Task("without memory", None()))->Wait().ok());
  away_ = false;
  memory_.Fail({1, 2}, absl::OkStatus());
  memory_.Fail({2, 9}, absl::OkStatus());
  absl::SleepFor(kLease);
  EXPECT_TRUE(Submit(Task("back", Leaf(9)))->Wait().ok());
}

}  // namespace
}  // namespace membank::serve_test
