// Two banks on one anchor: effects add, whoever may not read the second gets exactly the answer of the first alone, and rights that come and
// go take effect.
#include <atomic>

#include "absl/container/flat_hash_set.h"
#include "common/bank/block_layout.h"
#include "tests/model_worker/serve/serve_fixture.h"

namespace membank::serve_test {
namespace {

constexpr absl::Duration kLease = absl::Seconds(1);

MemoryChoice Private(uint32_t leaf) { return {{MemoryMode::kFetched, 3, leaf}, {}, {}, {}}; }

MemoryChoice Both(MemoryChoice first, MemoryChoice second) {
  first.stacked = {std::move(second)};
  return first;
}

// The anchor with the blocks of both paths joined to its feed-forward layers as further inner units.
AnchorWeights Widened(const std::vector<std::pair<BankSpec, std::vector<BlockId>>>& banks) {
  AnchorWeights weights = TinyAnchor();
  for (size_t layer = 0; layer < weights.layers.size(); ++layer) {
    LayerWeights& to = weights.layers[layer];
    for (const auto& bank : banks) {
      const BankSpec& spec = bank.first;
      for (BlockId id : bank.second) {
        const torch::Tensor block = torch::tensor(FakeMemory::Values(spec, id, 1));
        const FfnLayerRange range = FfnLayer(spec, id.level, static_cast<uint32_t>(layer));
        const auto rows = [&](uint64_t begin, uint64_t end) {
          return block.slice(0, static_cast<int64_t>(begin), static_cast<int64_t>(end)).view({spec.width(id.level), spec.hidden});
        };
        to.gate = torch::cat({to.gate, rows(range.gate, range.up)});
        to.up = torch::cat({to.up, rows(range.up, range.down)});
        to.down = torch::cat({to.down, rows(range.down, range.end).t()}, 1);
      }
    }
  }
  weights.config.ffn_inner = weights.layers[0].gate.size(0);
  return weights;
}

class StackedBanksTest : public ServeTest {
 protected:
  StackedBanksTest()
      : watch_([this](std::chrono::milliseconds) -> absl::StatusOr<AccessView> {
          AccessTable table;
          table.epoch = epoch_;
          if (blocked_) table.SetBlocked({1, 1}, true);
          return AccessView{table, {table.epoch}};
        }, PrivateSpec().fan_out, kLease) {
    banks_.push_back({&private_, "v1", &watch_});
  }
  void TearDown() override {
    private_.Release();
    ServeTest::TearDown();
    engine_.reset();  // before the watch
  }

  // What the memory servers of the second bank do when an administrator changes who may read.
  void SetRight(BlockId id, bool may_read) {
    private_.Fail(id, may_read ? absl::OkStatus() : absl::PermissionDeniedError("block is owned"));
    ++epoch_;
  }
  // The worker has heard of the change.
  void WaitForNews() {
    for (int i = 0; i < 1000 && watch_.epoch() < epoch_; ++i) absl::SleepFor(kLease / 100);
    ASSERT_EQ(watch_.epoch(), epoch_);
  }

  std::shared_ptr<Collector> Answer(const GenerateTask& task) {
    auto sink = Submit(task);
    const absl::Status status = sink->Wait();
    EXPECT_TRUE(status.ok()) << status;
    return sink;
  }
  std::shared_ptr<Collector> AnswerOfTheFirstAlone(const GenerateTask& task) {
    std::vector<ServedBank> both = banks_;
    banks_.pop_back();
    Start();
    auto sink = Answer(task);
    banks_ = both;
    return sink;
  }

  FakeMemory private_{PrivateSpec()};
  std::atomic<uint64_t> epoch_{1};
  std::atomic<bool> blocked_{false};
  AccessWatch watch_;
};

TEST_F(StackedBanksTest, EffectsAdd) {
  Start();
  const std::vector<int32_t> tokens = Bytes("a question and what follows it");
  const auto outcomes = Score({{tokens, 1, Both(Leaf(9), Private(5))}, {tokens, 1, Both(None(), Private(5))}, {tokens, 1, Leaf(9)}});
  ASSERT_TRUE(outcomes.ok()) << outcomes.status();
  const std::vector<BlockId> first = {{1, 2}, {2, 9}}, second = {{1, 1}, {3, 5}};
  const std::vector<std::vector<std::pair<BankSpec, std::vector<BlockId>>>> joined = {
      {{TinySpec(), first}, {PrivateSpec(), second}}, {{PrivateSpec(), second}}, {{TinySpec(), first}}};
  const int64_t n = static_cast<int64_t>(tokens.size());
  for (size_t i = 0; i < joined.size(); ++i) {
    torch::NoGradGuard no_grad;
    Transformer dense(Widened(joined[i]), false);
    RaggedBatch batch;
    batch.tokens = torch::tensor(std::vector<int64_t>(tokens.begin(), tokens.end()));
    batch.segments = {{0, n, nullptr}};
    const torch::Tensor expected = dense.Logits(dense.Forward(batch)).log_softmax(1);
    for (int64_t t = 1; t < n; ++t) EXPECT_NEAR((*outcomes)[i].logprobs[t - 1], expected[t - 1][tokens[t]].item<float>(), 1e-5) << i << " " << t;
  }
  EXPECT_GT(std::abs((*outcomes)[0].sum - (*outcomes)[2].sum), 1e-2) << "the second bank changes the answer";
}

TEST_F(StackedBanksTest, WithoutRightsTheAnswerIsThatOfTheFirstAloneBitForBit) {
  const auto alone = AnswerOfTheFirstAlone(Task("a question", Leaf(9)));
  Start();
  const GenerateTask both = Task("a question", Both(Leaf(9), Private(5)));
  const auto added = Answer(both);
  EXPECT_TRUE(added->left_out().empty());
  EXPECT_NE(*added->tokens()[0].logprob, *alone->tokens()[0].logprob);

  SetRight({3, 5}, false);  // of one of its two blocks: nothing of the bank is used
  WaitForNews();
  const auto denied = Answer(both);
  ExpectBitEqual(*denied, *alone);
  EXPECT_EQ(denied->left_out(), (std::vector<size_t>{1}));
  const auto scores = Score({{Bytes("ab"), 1, Both(Leaf(9), Private(5))}, {Bytes("ab"), 1, Both(Leaf(9), Private(4))}, {Bytes("ab"), 1, Leaf(9)}});
  ASSERT_TRUE(scores.ok()) << scores.status();
  EXPECT_EQ((*scores)[0].left_out, (std::vector<size_t>{1}));
  EXPECT_TRUE((*scores)[1].left_out.empty() && (*scores)[2].left_out.empty());
  EXPECT_EQ((*scores)[0].sum, (*scores)[2].sum);
  EXPECT_NE((*scores)[1].sum, (*scores)[2].sum);

  private_.Fail({1, 1}, Unavailable("m1 is away"));  // a bank that may not be read is not needed
  ExpectBitEqual(*Answer(both), *alone);
  private_.Fail({1, 1}, absl::OkStatus());
  SetRight({3, 5}, true);
  WaitForNews();
  const auto again = Answer(both);
  ExpectBitEqual(*again, *added);
  EXPECT_TRUE(again->left_out().empty());
}

TEST_F(StackedBanksTest, OtherErrorsOfTheSecondBankAndRefusalsOfTheFirstAreErrors) {
  Start();
  private_.Fail({1, 1}, Unavailable("m1 is away"));
  const absl::Status away = Submit(Task("x", Both(Leaf(9), Private(5))))->Wait();
  EXPECT_EQ(away.code(), absl::StatusCode::kUnavailable);
  EXPECT_NE(away.message().find("of bank private"), std::string::npos) << away;
  memory_.Fail({2, 10}, absl::PermissionDeniedError("block 2/10 is owned"));
  EXPECT_EQ(Submit(Task("x", Both(Leaf(10), Private(1))))->Wait().code(), absl::StatusCode::kPermissionDenied);
  EXPECT_TRUE(Submit(Task("x", Both(Leaf(8), Private(1))))->Wait().ok());
}

TEST_F(StackedBanksTest, OneBatchOfAllKindsOfMemory) {
  Start();
  SetRight({3, 2}, false);
  WaitForNews();
  const std::vector<MemoryChoice> memories = {None(), Leaf(9), Both(Leaf(9), Private(5)), Both(None(), Private(5)), Both(Generic(), Private(0)),
                                              Both(Leaf(9), Private(2)), Both(Leaf(3), Private(5))};
  std::vector<std::shared_ptr<Collector>> alone, together;
  for (const MemoryChoice& memory : memories) alone.push_back(Answer(Task("one prompt", memory, 20)));
  for (const MemoryChoice& memory : memories) together.push_back(Submit(Task("one prompt", memory, 20)));
  for (size_t i = 0; i < memories.size(); ++i) {
    ASSERT_TRUE(together[i]->Wait().ok()) << i;
    ASSERT_EQ(together[i]->ids(), alone[i]->ids()) << i;
    for (size_t t = 0; t < 20; ++t) EXPECT_NEAR(*together[i]->tokens()[t].logprob, *alone[i]->tokens()[t].logprob, 1e-4) << i << " " << t;
    EXPECT_EQ(together[i]->left_out().size(), i == 5 ? 1u : 0u) << i;
  }
  const EngineStatus status = engine_->GetStatus();
  ASSERT_EQ(status.resident.size(), 2u);
  EXPECT_EQ(status.resident[1].blocks, (std::vector<BlockId>{{1, 0}, {1, 1}, {3, 0}, {3, 5}}));
}

TEST_F(StackedBanksTest, WhatRunsEndsWhenTheRightIsLost) {
  Start();
  // However fast the machine is: once all have begun, the engine's thread waits for the news, and then goes slowly until they take effect.
  absl::flat_hash_set<const Collector*> begun;
  const auto wait_for_news = [&](const Collector* sink) {
    begun.insert(sink);
    for (int i = 0; begun.size() == 3 && watch_.epoch() < 2 && i < 1000; ++i) absl::SleepFor(kLease / 100);
  };
  auto loses = Submit(Task("go on", Both(Leaf(9), Private(5)), 450), [&](const Collector* sink) {
    wait_for_news(sink);
    if (begun.size() == 3) absl::SleepFor(kLease / 100);
  });
  auto keeps = Submit(Task("go on", Both(Leaf(9), Private(1)), 450), wait_for_news);
  auto first = Submit(Task("go on", Leaf(9), 450), wait_for_news);
  for (auto& sink : {loses, keeps, first}) ASSERT_TRUE(sink->WaitForTokens(1));
  SetRight({3, 5}, false);
  const absl::Status lost = loses->Wait();
  EXPECT_EQ(lost.code(), absl::StatusCode::kAborted) << lost;
  EXPECT_NE(lost.message().find("the right to read was lost"), std::string::npos) << lost;
  EXPECT_NE(lost.message().find("3/5 of bank private"), std::string::npos) << lost;
  EXPECT_LT(loses->tokens().size(), 450u);
  EXPECT_TRUE(keeps->Wait().ok()) << "its blocks may still be read";
  EXPECT_TRUE(first->Wait().ok());
}

TEST_F(StackedBanksTest, WithoutAnAnswerAboutTheRightItEndsWithTheLease) {
  Start();
  const auto wait = [&](const Collector*) { absl::SleepFor(kLease / 200); };  // 450 tokens take longer than the lease and the news
  auto running = Submit(Task("go on", Both(Leaf(9), Private(5)), 450), wait);
  ASSERT_TRUE(running->WaitForTokens(1));
  private_.Hold({3, 5});
  ++epoch_;
  const absl::Status status = running->Wait();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable) << status;
  EXPECT_NE(status.message().find("whether its blocks may still be read"), std::string::npos) << status;
}

TEST_F(StackedBanksTest, ARightLostWhileWaitingForRoomCounts) {
  const auto alone = AnswerOfTheFirstAlone(Task("waits", Leaf(9)));
  EngineOptions options = Options();
  options.kv_cache_tokens = 300;
  Start(options);
  std::atomic<bool> go_on{false};
  auto runs = Submit(Task("runs", None(), 280), [&](const Collector*) {
    const bool loaded = private_.fetches({3, 5}) > 0;
    for (int i = 0; !go_on && i < (loaded ? 1000 : 1); ++i) absl::SleepFor(kLease / 100);
  });
  ASSERT_TRUE(runs->WaitForTokens(1));
  auto waits = Submit(Task("waits", Both(Leaf(9), Private(5))));
  for (int i = 0; i < 1000 && private_.fetches({3, 5}) == 0; ++i) absl::SleepFor(kLease / 100);  // loaded, and there is no room
  ASSERT_EQ(private_.fetches({3, 5}), 1);
  SetRight({3, 5}, false);
  WaitForNews();
  go_on = true;
  ASSERT_TRUE(waits->Wait().ok());
  EXPECT_EQ(waits->left_out(), (std::vector<size_t>{1}));
  ExpectBitEqual(*waits, *alone);
}

TEST_F(StackedBanksTest, BlockedBlocksOfTheSecondBank) {
  Start();
  const auto before = Answer(Task("a question", Both(Leaf(9), Private(5))));
  private_.Block({1, 1});
  for (uint32_t leaf : {4u, 5u, 6u, 7u}) private_.Block({3, leaf});
  blocked_ = true;
  ++epoch_;
  WaitForNews();
  const auto zeros = Answer(Task("a question", Both(Leaf(9), Private(5))));
  EXPECT_TRUE(zeros->left_out().empty()) << "blocked is not refused: zeros are computed with";
  EXPECT_NE(*zeros->tokens()[0].logprob, *before->tokens()[0].logprob);
  const auto first = Answer(Task("a question", Leaf(9)));
  EXPECT_NEAR(*zeros->tokens()[0].logprob, *first->tokens()[0].logprob, 1e-5);
}

TEST_F(StackedBanksTest, EachBankHasItsVersion) {
  Start();
  const GenerateTask both = Task("a question", Both(Leaf(9), Private(5)));
  const auto before = Answer(both);
  EXPECT_EQ(engine_->UseBankVersion("private", "v2", /*check_only=*/false).value(), "v1");
  EXPECT_EQ(engine_->bank_versions(), (std::vector<std::string>{"v1", "v2"}));
  const auto after = Answer(both);
  EXPECT_NE(*after->tokens()[0].logprob, *before->tokens()[0].logprob);
  EXPECT_EQ(memory_.last_bank_version(), "v1");
  EXPECT_EQ(private_.last_bank_version(), "v2");
  EXPECT_EQ(engine_->UseBankVersion("private", "v1", false).value(), "v2");
  ExpectBitEqual(*Answer(both), *before);
  const absl::Status unknown = engine_->UseBankVersion("secret", "v1", false).status();
  EXPECT_EQ(unknown.code(), absl::StatusCode::kNotFound);
  EXPECT_NE(unknown.message().find("\"secret\" is not served here; these are: tiny, private"), std::string::npos) << unknown;
}

TEST_F(StackedBanksTest, BanksThatDoNotBelongTogetherAreRefused) {
  const auto refusal = [&](const BankSpec& spec) {
    FakeMemory memory(spec);
    return std::string(ModelEngine::Create(std::make_unique<Transformer>(TinyAnchor(), false), {{&memory_, "v1", nullptr}, {&memory, "v1", nullptr}},
                                           &tokenizer_, Options()).status().message());
  };
  BankSpec spec = PrivateSpec();
  spec.anchor_fingerprint = "other";
  EXPECT_NE(refusal(spec).find("bank private was trained beside the anchor with fingerprint other, this one's is tiny"), std::string::npos)
      << refusal(spec);
  spec = PrivateSpec();
  spec.bank_id = "tiny";
  EXPECT_NE(refusal(spec).find("both banks are named tiny"), std::string::npos) << refusal(spec);
  Start();
  const absl::Status path = Refusal(Task("x", Both(Leaf(9), Private(8))));
  EXPECT_NE(path.message().find("bank private has depth 3 and leaves 0 to 7"), std::string::npos) << path;
}

}  // namespace
}  // namespace membank::serve_test
