// The engine against a tiny random model: batches equal single requests, and what goes wrong hits one request alone.
#include <cmath>

#include "tests/model_worker/serve/serve_fixture.h"

namespace membank::serve_test {
namespace {

constexpr float kTolerance = 2e-5f;  // fp32: other rows in a matrix product may change the last bits

void ExpectSame(Collector& a, Collector& b) {
  ASSERT_EQ(a.ids(), b.ids());
  EXPECT_EQ(a.text(), b.text());
  for (size_t i = 0; i < a.tokens().size(); ++i) EXPECT_NEAR(*a.tokens()[i].logprob, *b.tokens()[i].logprob, kTolerance) << i;
}

std::vector<GenerateTask> MixedTasks(GenerateTask (*make)(const std::string&, MemoryChoice)) {
  MemoryChoice level_one = Leaf(7);
  level_one.levels = {1};
  return {make("one prompt", None()),        make("another, longer prompt", Generic()), make("x", Leaf(0)),
          make("one prompt", Leaf(7)),       make("one prompt", level_one),             make("the last of the batch", Leaf(7))};
}

TEST_F(ServeTest, MixedMemoriesInOneBatchEqualEachAlone) {
  Start();
  const std::vector<GenerateTask> tasks = MixedTasks(+[](const std::string& p, MemoryChoice m) { return Task(p, std::move(m)); });
  std::vector<std::shared_ptr<Collector>> alone, together;
  for (const GenerateTask& task : tasks) {
    alone.push_back(Submit(task));
    ASSERT_TRUE(alone.back()->Wait().ok());
  }
  for (const GenerateTask& task : tasks) together.push_back(Submit(task));
  for (size_t i = 0; i < tasks.size(); ++i) {
    ASSERT_TRUE(together[i]->Wait().ok());
    EXPECT_EQ(together[i]->tokens().size(), 12u);
    EXPECT_EQ(together[i]->summary().reason, FinishReason::kLength);
    ExpectSame(*alone[i], *together[i]);
  }
  // The same prompt with other memories is another distribution.
  EXPECT_GT(std::abs(*alone[0]->tokens()[0].logprob - *alone[3]->tokens()[0].logprob), 1e-3);
  EXPECT_GT(std::abs(*alone[3]->tokens()[0].logprob - *alone[4]->tokens()[0].logprob), 1e-3);
}

TEST_F(ServeTest, SampledAnswersDependOnTheSeedNotOnTheBatch) {
  Start();
  auto make = +[](const std::string& p, MemoryChoice m) {
    GenerateTask task = Task(p, std::move(m));
    task.sampling.temperature = 1;
    task.sampling.top_p = 0.9;
    task.sampling.seed = 11;
    return task;
  };
  std::vector<GenerateTask> tasks = MixedTasks(make);
  auto alone = Submit(tasks[3]);
  ASSERT_TRUE(alone->Wait().ok());
  std::vector<std::shared_ptr<Collector>> together;
  for (const GenerateTask& task : tasks) together.push_back(Submit(task));
  for (auto& sink : together) ASSERT_TRUE(sink->Wait().ok());
  EXPECT_EQ(together[3]->ids(), alone->ids());
  tasks[3].sampling.seed = 12;
  auto other = Submit(tasks[3]);
  ASSERT_TRUE(other->Wait().ok());
  EXPECT_NE(other->ids(), alone->ids());
}

TEST_F(ServeTest, SequencesInFlightKeepTheirBankVersion) {
  Start();
  memory_.Hold({2, 5});
  auto waiting = Submit(Task("one prompt", Leaf(5)));  // its second block comes after the change
  int outputs = 0;
  auto running = Submit(Task("one prompt", Leaf(7), 40), [&](const Collector*) {
    if (++outputs != 3) return;
    EXPECT_EQ(engine_->UseBankVersion("", "v2", /*check_only=*/false).value(), "v1");
  });
  ASSERT_TRUE(running->Wait().ok());
  auto other = Submit(Task("one prompt", Leaf(7), 40));
  memory_.Release();
  ASSERT_TRUE(waiting->Wait().ok());
  ASSERT_TRUE(other->Wait().ok());
  EXPECT_GT(std::abs(*other->tokens()[0].logprob - *running->tokens()[0].logprob), 1e-4);

  EXPECT_EQ(engine_->UseBankVersion("", "v1", false).value(), "v2");  // back
  auto running_alone = Submit(Task("one prompt", Leaf(7), 40));
  ASSERT_TRUE(running_alone->Wait().ok());
  auto waiting_alone = Submit(Task("one prompt", Leaf(5)));
  ASSERT_TRUE(waiting_alone->Wait().ok());
  ExpectSame(*running, *running_alone);
  ExpectSame(*waiting, *waiting_alone);
}

TEST_F(ServeTest, OnlyVersionsThatAreThereCanBeUsed) {
  Start();
  const absl::Status unknown = engine_->UseBankVersion("", "v9", false).status();
  EXPECT_EQ(unknown.code(), absl::StatusCode::kNotFound);
  EXPECT_NE(unknown.message().find("\"v9\" is not on every memory server; these are: v1, v2"), std::string::npos) << unknown;
  EXPECT_EQ(engine_->UseBankVersion("", "v2", /*check_only=*/true).value(), "v1");
  EXPECT_EQ(engine_->bank_versions()[0], "v1");
  EXPECT_EQ(engine_->UseBankVersion("", "", false).value(), "v1");
  EXPECT_EQ(engine_->bank_versions()[0], "") << "the live head";
  Start(Options(), /*with_memory=*/false);
  EXPECT_EQ(engine_->UseBankVersion("", "v1", false).status().code(), absl::StatusCode::kFailedPrecondition);
}

TEST_F(ServeTest, PromptsInChunksEqualPromptsAtOnce) {
  const std::string prompt(100, 'q');
  GenerateTask task = Task(prompt + "uite long", Leaf(4));
  task.sampling.echo = true;
  Start();
  auto whole = Submit(task);
  ASSERT_EQ(whole->Wait(), absl::OkStatus());
  EngineOptions options = Options();
  options.prefill_tokens = 7;
  Start(options);
  auto other = Submit(Task("meanwhile", None()));
  auto chunks = Submit(task);
  ASSERT_TRUE(chunks->Wait().ok());
  ASSERT_TRUE(other->Wait().ok());
  ExpectSame(*whole, *chunks);
  ASSERT_EQ(chunks->prompt().size(), task.prompt.size());
  EXPECT_FALSE(chunks->prompt()[0].logprob.has_value());
  for (size_t i = 0; i < task.prompt.size(); ++i) {
    EXPECT_EQ(chunks->prompt()[i].id, task.prompt[i]);
    if (i > 0) {
      EXPECT_NEAR(*chunks->prompt()[i].logprob, *whole->prompt()[i].logprob, kTolerance) << i;
      EXPECT_EQ(chunks->prompt()[i].top.size(), 2u);
    }
  }
}

// The memory as one dense path through the model, without engine, cache or batching.
torch::Tensor ReferenceLogprobs(const std::vector<int32_t>& tokens, const std::vector<BlockId>& blocks) {
  torch::InferenceMode inference;
  Transformer model(TinyAnchor(), false);
  const BankSpec spec = TinySpec();
  const int64_t n = static_cast<int64_t>(tokens.size());
  RaggedBatch batch;
  batch.tokens = torch::tensor(tokens).to(torch::kLong);
  batch.segments = {{0, n, nullptr}};
  for (BlockId id : blocks) {
    torch::Tensor values = torch::tensor(FakeMemory::Values(spec, id, 1));
    batch.memory.push_back({spec.width(id.level), {{values, torch::Tensor(), {{0, n}}}}});
  }
  return model.Logits(model.Forward(batch)).log_softmax(1);
}

TEST_F(ServeTest, ScoresEqualAFullForward) {
  EngineOptions options = Options();
  options.prefill_tokens = 40;  // the long item goes in chunks through a KV cache, the short ones in one piece
  Start(options);
  const std::string long_text(90, 'z');
  std::vector<ScoreTask> tasks = {{Bytes("a context and its end"), 9, None()},
                                  {Bytes("a context and its end"), 9, Leaf(5)},
                                  {Bytes(long_text + "end"), 90, Leaf(5)},
                                  {Bytes("b"), 0, Generic()}};
  tasks[3].tokens = Bytes("bc");
  tasks[3].context = 1;
  auto outcomes = Score(tasks);
  ASSERT_TRUE(outcomes.ok()) << outcomes.status();
  for (size_t i = 0; i < tasks.size(); ++i) {
    const ScoreTask& task = tasks[i];
    const torch::Tensor reference = ReferenceLogprobs(task.tokens, engine_->BlocksOf(0, task.memory).value());
    const ScoreOutcome& outcome = (*outcomes)[i];
    ASSERT_EQ(outcome.logprobs.size(), task.tokens.size() - task.context) << i;
    double sum = 0;
    bool greedy = true;
    for (size_t t = task.context; t < task.tokens.size(); ++t) {
      const torch::Tensor row = reference[static_cast<int64_t>(t) - 1];
      EXPECT_NEAR(outcome.logprobs[t - task.context], row[task.tokens[t]].item<float>(), kTolerance) << i << " " << t;
      sum += outcome.logprobs[t - task.context];
      greedy = greedy && row.slice(0, 0, 258).argmax().item<int64_t>() == task.tokens[t];
    }
    EXPECT_NEAR(outcome.sum, sum, 1e-9);
    EXPECT_EQ(outcome.is_greedy, greedy) << i;
  }
  EXPECT_EQ(engine_->GetStatus().kv_tokens, 0u);
}

TEST_F(ServeTest, TheGreedyAnswerScoresAsGreedy) {
  Start();
  auto answer = Submit(Task("begin", Leaf(2)));
  ASSERT_EQ(answer->Wait(), absl::OkStatus());
  std::vector<int32_t> tokens = Bytes("begin");
  for (int32_t id : answer->ids()) tokens.push_back(id);
  auto outcome = Score({{tokens, 5, Leaf(2)}});
  ASSERT_TRUE(outcome.ok()) << outcome.status();
  EXPECT_TRUE((*outcome)[0].is_greedy);
  for (size_t i = 0; i < answer->tokens().size(); ++i) EXPECT_NEAR((*outcome)[0].logprobs[i], *answer->tokens()[i].logprob, kTolerance);
}

TEST_F(ServeTest, StopStringsAndStopTokensEndTheAnswer) {
  Start();
  GenerateTask task = Task("stop me", None(), 40);
  task.sampling.temperature = 1.5;  // varied bytes
  task.sampling.seed = 3;
  auto whole = Submit(task);
  ASSERT_EQ(whole->Wait(), absl::OkStatus());
  const std::vector<int32_t> ids = whole->ids();
  size_t at = 5;  // two neighbouring ASCII bytes
  while (at + 1 < ids.size() && !(ids[at] < 128 && ids[at + 1] < 128)) ++at;
  ASSERT_LT(at + 1, ids.size());
  const std::string pair = {static_cast<char>(ids[at]), static_cast<char>(ids[at + 1])};
  const size_t first = whole->text().find(pair);

  task.sampling.stop = {pair};
  auto stopped = Submit(task);
  ASSERT_TRUE(stopped->Wait().ok());
  EXPECT_EQ(stopped->text(), whole->text().substr(0, first));
  EXPECT_EQ(stopped->summary().reason, FinishReason::kStop);

  task.sampling.stop.clear();
  task.sampling.stop_tokens = {ids[at]};
  auto by_token = Submit(task);
  ASSERT_TRUE(by_token->Wait().ok());
  const size_t first_token = std::find(ids.begin(), ids.end(), ids[at]) - ids.begin();
  EXPECT_EQ(by_token->tokens().size(), first_token);
  EXPECT_EQ(by_token->summary().completion_tokens, first_token);
  EXPECT_EQ(by_token->summary().reason, FinishReason::kStop);
}

// The tiny anchor has 264 rows of logits, the tokenizer 258 tokens.
TEST_F(ServeTest, PaddingOfTheVocabularyIsNeverChosen) {
  Start();
  GenerateTask task = Task("padding", None(), 300);
  task.sampling.temperature = 100;
  auto answer = Submit(task);
  ASSERT_EQ(answer->Wait(), absl::OkStatus());
  EXPECT_EQ(answer->ids().size(), 300u);
  for (int32_t id : answer->ids()) EXPECT_LT(id, 258);
}

TEST_F(ServeTest, StreamedTextIsAlwaysUtf8) {
  Start();
  GenerateTask task = Task("bytes", None(), 200);
  task.sampling.temperature = 3;  // nearly uniform bytes: mostly broken sequences; the Collector checks every part
  auto answer = Submit(task);
  ASSERT_EQ(answer->Wait(), absl::OkStatus());
  EXPECT_EQ(answer->tokens().size(), 200u);
  EXPECT_NE(answer->text().find("\xef\xbf\xbd"), std::string::npos);
}

TEST_F(ServeTest, ReadingOnlyThePromptNeedsNoNewToken) {
  Start();
  GenerateTask task = Task("just read", Generic(), 0);
  task.sampling.echo = true;
  auto answer = Submit(task);
  ASSERT_EQ(answer->Wait(), absl::OkStatus());
  EXPECT_EQ(answer->prompt().size(), 9u);
  EXPECT_TRUE(answer->tokens().empty());
  EXPECT_TRUE(answer->prompt()[8].logprob.has_value());
}

TEST_F(ServeTest, CancellationFreesCacheAndBlocks) {
  Start();
  auto answer = Submit(Task("run for long", Leaf(3), 400));
  ASSERT_TRUE(answer->WaitForTokens(2));
  EXPECT_EQ(engine_->GetStatus().running, 1u);
  EXPECT_GT(engine_->GetStatus().kv_tokens, 400u);
  engine_->Cancel(ticket_);
  EXPECT_EQ(answer->Wait().code(), absl::StatusCode::kCancelled);
  EXPECT_EQ(answer->summary().reason, FinishReason::kCancelled);
  EXPECT_LT(answer->tokens().size(), 400u);
  EXPECT_EQ(engine_->GetStatus().kv_tokens, 0u);
  EXPECT_EQ(engine_->GetStatus().running, 0u);
  engine_->Cancel(ticket_);  // again: nothing happens
  EXPECT_TRUE(Submit(Task("next", None()))->Wait().ok());
}

TEST_F(ServeTest, AMissingBlockStopsOnlyItsOwnSequences) {
  Start();
  memory_.Hold({2, 5});
  auto waits = Submit(Task("waits", Leaf(5)));
  auto also = Submit(Task("waits too", Leaf(5)));
  auto runs = Submit(Task("runs", Leaf(6)));
  ASSERT_EQ(runs->Wait(), absl::OkStatus());
  EXPECT_FALSE(waits->ended());
  memory_.Release();
  EXPECT_TRUE(waits->Wait().ok());
  EXPECT_TRUE(also->Wait().ok());
  EXPECT_EQ(memory_.fetches({2, 5}), 1);
}

TEST_F(ServeTest, AFailedBlockFailsOnlyItsRequest) {
  Start();
  memory_.Fail({1, 2}, Unavailable("server m1 is away"));
  auto fails = Submit(Task("fails", Leaf(8)));
  auto runs = Submit(Task("runs", Leaf(0)));
  const absl::Status status = fails->Wait();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_NE(status.message().find("block 1/2"), std::string::npos) << status;
  EXPECT_TRUE(runs->Wait().ok());
  auto scores = Score({{Bytes("ab"), 1, Leaf(0)}, {Bytes("ab"), 1, Leaf(8)}});
  EXPECT_EQ(scores.status().code(), absl::StatusCode::kUnavailable);
  EXPECT_TRUE(Score({{Bytes("ab"), 1, Leaf(0)}}).ok());
}

TEST_F(ServeTest, DeadlinesEndWaitingAndRunningSequences) {
  Start();
  memory_.Hold({1, 0});
  GenerateTask waiting = Task("waits", Leaf(0));
  waiting.deadline = absl::Now() + absl::Milliseconds(50);
  EXPECT_EQ(Submit(waiting)->Wait().code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_EQ(Score({{Bytes("ab"), 1, Leaf(0)}}, absl::Now() + absl::Milliseconds(50)).status().code(), absl::StatusCode::kDeadlineExceeded);
  memory_.Release();
  EXPECT_EQ(engine_->GetStatus().queued_tokens, 0u);
}

TEST_F(ServeTest, TheQueueIsBoundedInTokens) {
  EngineOptions options = Options();
  options.max_queued_tokens = 20;
  Start(options);
  memory_.Hold({1, 0});
  auto waits = Submit(Task("fifteen letters", Leaf(0)));
  const absl::Status full = Refusal(Task("sixteen letters!", None()));
  EXPECT_EQ(full.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_NE(full.message().find("15 prompt tokens are waiting and the request has 16; at most 20"), std::string::npos) << full;
  memory_.Release();
  EXPECT_TRUE(waits->Wait().ok());
  EXPECT_TRUE(Submit(Task("sixteen letters!", None()))->Wait().ok());
}

TEST_F(ServeTest, MoreSequencesThanRoomAllGetTheirTurn) {
  EngineOptions options = Options();
  options.max_running = 3;
  options.kv_cache_tokens = 60;
  Start(options);
  std::vector<std::shared_ptr<Collector>> sinks;
  for (int i = 0; i < 12; ++i) sinks.push_back(Submit(Task("prompt " + std::to_string(i), Leaf(i % 9))));
  for (auto& sink : sinks) EXPECT_TRUE(sink->Wait().ok());
  EXPECT_EQ(engine_->GetStatus().generated_tokens, 12u * 12u);
  EXPECT_EQ(engine_->GetStatus().kv_tokens, 0u);
}

TEST_F(ServeTest, BadRequestsAreRefusedAndSayWhy) {
  Start();
  auto expect = [&](GenerateTask task, const std::string& part, absl::StatusCode code = absl::StatusCode::kInvalidArgument) {
    const absl::Status status = Refusal(std::move(task));
    EXPECT_EQ(status.code(), code);
    EXPECT_NE(status.message().find(part), std::string::npos) << status;
  };
  expect(Task("", None()), "no tokens");
  GenerateTask task = Task("x", None());
  task.prompt = {5, 258};
  expect(task, "token 258 at position 1 is not in the vocabulary; allowed: 0 to 257");
  expect(Task(std::string(512, 'x'), None()), "512 tokens, with at least one new token 513; the context holds 512");
  expect(Task("x", Leaf(16)), "unknown path: leaf 16 of depth 2; bank tiny has depth 2 and leaves 0 to 15");
  expect(Task("x", {{MemoryMode::kFetched, 3, 0}, {}}), "unknown path");
  expect(Task("x", {{MemoryMode::kFetched, 2, 0}, {3}}), "unknown level 3");
  task = Task("x", None());
  task.sampling.temperature = -1;
  expect(task, "temperature is -1");
  EXPECT_EQ(Score({{Bytes("ab"), 2, None()}}).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(Score({}).status().code(), absl::StatusCode::kInvalidArgument);
  const absl::Status item = Score({{Bytes("ab"), 1, None()}, {Bytes("ab"), 0, None()}}).status();
  EXPECT_NE(item.message().find("item 1"), std::string::npos) << item;
  EXPECT_EQ(engine_->GetStatus().queued_tokens, 0u);

  Start(Options(), /*with_memory=*/false);
  expect(Task("x", Generic()), "without a bank", absl::StatusCode::kFailedPrecondition);
  EXPECT_TRUE(Submit(Task("x", None()))->Wait().ok());
}

TEST_F(ServeTest, DrainFinishesWhatRunsAndRefusesTheRest) {
  Start();
  auto runs = Submit(Task("runs", None(), 50));
  EXPECT_EQ(engine_->Drain(absl::Now() + absl::Seconds(30)), 0u);
  EXPECT_TRUE(runs->Wait().ok());
  EXPECT_EQ(Refusal(Task("late", None())).code(), absl::StatusCode::kUnavailable);
  EXPECT_TRUE(engine_->GetStatus().draining);
}

TEST_F(ServeTest, StoppingCancelsWhatIsLeft) {
  Start();
  memory_.Hold({1, 0});
  auto waits = Submit(Task("waits", Leaf(0)));
  auto runs = Submit(Task("runs", None(), 400));
  ASSERT_TRUE(runs->WaitForTokens(1));
  memory_.Release();
  engine_.reset();
  EXPECT_TRUE(runs->ended() && waits->ended());
}

TEST_F(ServeTest, ABankOfAnotherAnchorIsRefused) {
  BankSpec spec = TinySpec();
  spec.anchor_fingerprint = "other";
  FakeMemory memory(spec);
  auto engine = ModelEngine::Create(std::make_unique<Transformer>(TinyAnchor(), false), {{&memory, "v1", nullptr}}, &tokenizer_, Options());
  EXPECT_EQ(engine.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_NE(engine.status().message().find("other"), std::string::npos);
  spec.layers = 3;
  FakeMemory deeper(spec);
  engine = ModelEngine::Create(std::make_unique<Transformer>(TinyAnchor(), false), {{&deeper, "v1", nullptr}}, &tokenizer_, Options());
  EXPECT_EQ(engine.status().code(), absl::StatusCode::kFailedPrecondition);
}

TEST_F(ServeTest, DamagedWeightsAreReportedNotServed) {
  AnchorWeights weights = TinyAnchor();
  weights.layers[1].down.index_put_({0, 0}, std::nan(""));
  auto engine = ModelEngine::Create(std::make_unique<Transformer>(std::move(weights), false), {}, &tokenizer_, Options());
  ASSERT_TRUE(engine.ok());
  engine_ = *std::move(engine);
  EXPECT_EQ(Submit(Task("x", None()))->Wait().code(), absl::StatusCode::kInternal);
}

}  // namespace
}  // namespace membank::serve_test
