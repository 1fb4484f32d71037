// The worker's service over loopback with a real engine: what clients see.
#include "model_worker/worker_service.h"

#include <thread>

#include "common/base/status_macros.h"
#include "common/client/worker_client.h"
#include "common/rpc/channel.h"
#include "common/rpc/server.h"
#include "common/rpc/status.h"
#include "gtest/gtest.h"
#include "tests/model_worker/service/tiny_engine.h"

namespace membank {
namespace {

class WorkerServiceTest : public ::testing::Test {
 protected:
  explicit WorkerServiceTest(bool stacked = false)
      : tiny_(serve_test::TinyEngine::Create(stacked)), service_(tiny_->engine(), tiny_->tokenizer(), "tiny") {
    server_ = RpcServer::Start({}, {&service_}).value();
    client_ = Client();
  }
  ~WorkerServiceTest() override {
    tiny_->ReleaseBlocks();
    server_->Shutdown(std::chrono::milliseconds(0));
  }

  std::unique_ptr<WorkerClient> Client(std::chrono::milliseconds timeout = std::chrono::seconds(60)) {
    WorkerClient::Options options;
    options.address = server_->address();
    options.timeout = timeout;
    return WorkerClient::Create(options).value();
  }

  std::unique_ptr<v1::WorkerService::Stub> Stub() {
    return v1::WorkerService::NewStub(MakeChannels(server_->address(), {}).value()[0]);
  }

  static WorkerClient::Memory Leaf(uint32_t leaf) { return {{MemoryMode::kFetched, 2, leaf}, {}}; }
  static WorkerClient::Sampling Tokens(uint32_t max_tokens) {
    WorkerClient::Sampling sampling;
    sampling.max_tokens = max_tokens;
    sampling.ignore_eos = true;
    return sampling;
  }

  absl::Status Refusal(const WorkerClient::Prompt& prompt, const WorkerClient::Memory& memory, const WorkerClient::Sampling& sampling) {
    return client_->Generate(prompt, memory, sampling, [](const WorkerClient::Part&) { return true; }).status();
  }

  // Waits until the engine has nothing left.
  bool Idle() {
    for (int i = 0; i < 600; ++i) {
      const WorkerClient::Status status = client_->GetStatus().value();
      if (status.running == 0 && status.kv_tokens == 0 && status.queued == 0) return true;
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
    }
    return false;
  }

  std::unique_ptr<serve_test::TinyEngine> tiny_;
  WorkerService service_;
  std::unique_ptr<RpcServer> server_;
  std::unique_ptr<WorkerClient> client_;
};

// A second bank, "private", stacked on "tiny".
class StackedWorkerServiceTest : public WorkerServiceTest {
 protected:
  StackedWorkerServiceTest() : WorkerServiceTest(true) {}

  static v1::BlockPath Path(uint32_t depth, uint32_t leaf) {
    v1::BlockPath path;
    path.set_mode(v1::MEMORY_MODE_FETCHED);
    path.set_depth(depth);
    path.set_leaf(leaf);
    return path;
  }
  template <typename Message>
  static void AddPrivate(uint32_t leaf, Message* message) {
    v1::StackedMemory& stacked = *message->add_stacked();
    stacked.set_bank("private");
    *stacked.mutable_path() = Path(3, leaf);
  }

  // The first chunk's start.
  absl::StatusOr<v1::GenerateStart> Generate(const v1::GenerateRequest& request) {
    grpc::ClientContext context;
    auto stub = Stub();
    auto reader = stub->Generate(&context, request);
    v1::GenerateChunk first, chunk;
    if (reader->Read(&first)) {
      while (reader->Read(&chunk)) {
      }
    }
    RETURN_IF_ERROR(FromGrpc(reader->Finish(), "worker"));
    return first.start();
  }
  static v1::GenerateRequest Request() {
    v1::GenerateRequest request;
    request.mutable_prompt()->set_text("hello");
    *request.mutable_path() = Path(2, 7);
    request.mutable_sampling()->set_max_tokens(3);
    return request;
  }
};

TEST_F(StackedWorkerServiceTest, SaysOfEachBankWhatWasUsedOrWhyNot) {
  v1::GenerateRequest request = Request();
  auto start = Generate(request);
  ASSERT_TRUE(start.ok()) << start.status();
  ASSERT_EQ(start->memory().stacked_size(), 1);
  EXPECT_EQ(start->memory().left_out(), v1::LEFT_OUT_UNSPECIFIED);
  EXPECT_EQ(start->memory().stacked(0).bank_id(), "private");
  EXPECT_EQ(start->memory().stacked(0).bank_version(), "v1");
  EXPECT_EQ(start->memory().stacked(0).path_text(), "none");
  EXPECT_EQ(start->memory().stacked(0).left_out(), v1::LEFT_OUT_NOT_ASKED_FOR);

  AddPrivate(5, &request);
  start = Generate(request);
  ASSERT_TRUE(start.ok()) << start.status();
  const v1::MemoryUsed used = start->memory();
  EXPECT_EQ(used.path_text(), "1.3");
  EXPECT_EQ(used.blocks_size(), 2);
  EXPECT_EQ(used.stacked(0).path_text(), "1.0.1");
  EXPECT_EQ(used.stacked(0).left_out(), v1::LEFT_OUT_UNSPECIFIED);
  ASSERT_EQ(used.stacked(0).blocks_size(), 2);  // its second level has no blocks
  EXPECT_EQ(used.stacked(0).blocks(1).level(), 3u);
  request.mutable_path()->set_mode(v1::MEMORY_MODE_NONE);
  EXPECT_EQ(Generate(request)->memory().left_out(), v1::LEFT_OUT_NOT_ASKED_FOR);

  tiny_->FailPrivateBlock({3, 6}, absl::PermissionDeniedError("block 3/6 is owned"));
  request = Request();
  AddPrivate(6, &request);
  start = Generate(request);
  ASSERT_TRUE(start.ok()) << start.status();
  EXPECT_EQ(start->memory().stacked(0).left_out(), v1::LEFT_OUT_NO_RIGHTS);
  EXPECT_EQ(start->memory().stacked(0).path_text(), "1.1.0");
  EXPECT_EQ(start->memory().stacked(0).blocks_size(), 0);
  EXPECT_EQ(start->memory().blocks_size(), 2);

  v1::ScoreRequest score;
  for (uint32_t leaf : {5u, 6u}) {
    v1::ScoreItem& item = *score.add_items();
    item.mutable_continuation()->set_text("ab");
    *item.mutable_path() = Path(2, 7);
    AddPrivate(leaf, &item);
  }
  grpc::ClientContext context;
  v1::ScoreReply scores;
  ASSERT_TRUE(Stub()->Score(&context, score, &scores).ok());
  EXPECT_EQ(scores.results(0).memory().stacked(0).left_out(), v1::LEFT_OUT_UNSPECIFIED);
  EXPECT_EQ(scores.results(1).memory().stacked(0).left_out(), v1::LEFT_OUT_NO_RIGHTS);
}

TEST_F(StackedWorkerServiceTest, BadChoicesListWhatIsThere) {
  v1::GenerateRequest request = Request();
  AddPrivate(5, &request);
  AddPrivate(5, &request);
  EXPECT_NE(Generate(request).status().message().find("names bank private twice"), std::string::npos);
  request.mutable_stacked(1)->set_bank("secret");
  const absl::Status unknown = Generate(request).status();
  EXPECT_EQ(unknown.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_NE(unknown.message().find("the banks stacked here are: private"), std::string::npos) << unknown;
  request = Request();
  AddPrivate(8, &request);
  EXPECT_NE(Generate(request).status().message().find("bank private has depth 3 and leaves 0 to 7"), std::string::npos);
}

TEST_F(StackedWorkerServiceTest, StatusAndVersionsAreOfEachBank) {
  v1::GenerateRequest request = Request();
  AddPrivate(5, &request);
  ASSERT_TRUE(Generate(request).ok());
  EXPECT_EQ(client_->UseBankVersion("private", "v2", /*check_only=*/false).value(), "v1");
  grpc::ClientContext context;
  v1::WorkerStatus status;
  ASSERT_TRUE(Stub()->GetStatus(&context, {}, &status).ok());
  EXPECT_EQ(status.bank_version(), "v1");
  EXPECT_EQ(status.resident_blocks_size(), 2);
  ASSERT_EQ(status.stacked_size(), 1);
  EXPECT_EQ(status.stacked(0).bank().bank_id(), "private");
  EXPECT_EQ(status.stacked(0).bank_version(), "v2");
  EXPECT_EQ(status.stacked(0).resident_blocks_size(), 2);
  EXPECT_EQ(status.stacked(0).resident_bytes(), (4 + 16) * 3 * 2 * 32 * 4u);
  EXPECT_EQ(client_->GetStatus()->bank_versions, (std::map<std::string, std::string>{{"tiny", "v1"}, {"private", "v2"}}));
  EXPECT_EQ(client_->UseBankVersion("secret", "v1", false).status().code(), absl::StatusCode::kNotFound);
}

TEST_F(WorkerServiceTest, GenerateStreamsAndSaysWhatWasUsed) {
  WorkerClient::Sampling sampling = Tokens(9);
  sampling.echo = true;
  sampling.logprobs = 1;
  std::vector<WorkerClient::Token> prompt, tokens;
  auto answer = client_->Generate({"hello", {}, false}, Leaf(7), sampling, [&](const WorkerClient::Part& part) {
    prompt.insert(prompt.end(), part.prompt.begin(), part.prompt.end());
    tokens.insert(tokens.end(), part.tokens.begin(), part.tokens.end());
    return true;
  });
  ASSERT_TRUE(answer.ok()) << answer.status();
  EXPECT_EQ(answer->finish_reason, "length");
  EXPECT_EQ(answer->path, "1.3");
  EXPECT_EQ(answer->bank_id, "tiny");
  EXPECT_EQ(answer->bank_version, "v1");
  EXPECT_EQ(answer->blocks, (std::vector<BlockId>{{1, 1}, {2, 7}}));
  EXPECT_EQ(answer->prompt_tokens, 5u);
  EXPECT_EQ(answer->completion_tokens, 9u);
  EXPECT_GT(answer->first_token_ms, 0);
  EXPECT_GE(answer->total_ms, answer->first_token_ms);
  ASSERT_EQ(prompt.size(), 5u);
  EXPECT_EQ(prompt[1].bytes, "e");
  EXPECT_FALSE(prompt[0].logprob.has_value());
  EXPECT_TRUE(prompt[1].logprob.has_value());
  ASSERT_EQ(tokens.size(), 9u);
  EXPECT_LT(*tokens[8].logprob, 0);
}

TEST_F(WorkerServiceTest, AnswersSayWhichBankVersionTheyWereMadeWith) {
  tiny_->HoldBlock({2, 4});
  absl::StatusOr<WorkerClient::Answer> in_flight;
  std::thread waiting([&] { in_flight = client_->Generate({"x"}, Leaf(4), Tokens(2), [](const auto&) { return true; }); });
  while (client_->GetStatus()->queued == 0) std::this_thread::sleep_for(std::chrono::milliseconds(5));
  EXPECT_EQ(client_->UseBankVersion("", "v2", /*check_only=*/true).value(), "v1");
  EXPECT_EQ(client_->GetStatus()->bank_version, "v1");
  EXPECT_EQ(client_->UseBankVersion("", "v2", /*check_only=*/false).value(), "v1");
  EXPECT_EQ(client_->GetStatus()->bank_version, "v2");
  const auto after = client_->Generate({"x"}, Leaf(3), Tokens(2), [](const auto&) { return true; });
  ASSERT_TRUE(after.ok()) << after.status();
  EXPECT_EQ(after->bank_version, "v2");
  tiny_->ReleaseBlocks();
  waiting.join();
  ASSERT_TRUE(in_flight.ok()) << in_flight.status();
  EXPECT_EQ(in_flight->bank_version, "v1");
  const absl::Status unknown = client_->UseBankVersion("", "v9", false).status();
  EXPECT_EQ(unknown.code(), absl::StatusCode::kNotFound) << unknown;
  EXPECT_EQ(client_->GetStatus()->bank_version, "v2");
}

TEST_F(WorkerServiceTest, TokenIdsAndTextAreTheSamePrompt) {
  std::string first, second;
  ASSERT_TRUE(client_->Generate({"abc", {}, false}, Leaf(1), Tokens(20), [&](const auto& part) { first += part.text; return true; }).ok());
  ASSERT_TRUE(client_->Generate({"", {97, 98, 99}, false}, Leaf(1), Tokens(20), [&](const auto& part) { second += part.text; return true; }).ok());
  EXPECT_EQ(first, second);
}

TEST_F(WorkerServiceTest, ScoresABatchOfMixedPaths) {
  std::vector<WorkerClient::ScoreItem> items = {{{"a context"}, {" end"}, {}},
                                                {{"a context"}, {" end"}, Leaf(4)},
                                                {{""}, {"no context"}, {{MemoryMode::kGeneric, 2, 0}, {}}}};
  auto scores = client_->ScoreAll(items);
  ASSERT_TRUE(scores.ok()) << scores.status();
  ASSERT_EQ(scores->size(), 3u);
  EXPECT_EQ((*scores)[0].tokens, (std::vector<int32_t>{' ', 'e', 'n', 'd'}));
  EXPECT_EQ((*scores)[0].context_tokens, 9u);
  EXPECT_EQ((*scores)[2].context_tokens, 1u) << "the end-of-text token stands in front";
  EXPECT_EQ((*scores)[2].logprobs.size(), 10u);
  EXPECT_NE((*scores)[0].sum, (*scores)[1].sum);
  double sum = 0;
  for (float logprob : (*scores)[1].logprobs) sum += logprob;
  EXPECT_NEAR(sum, (*scores)[1].sum, 1e-6);
}

TEST_F(WorkerServiceTest, TokenizesBothWays) {
  EXPECT_EQ(client_->Tokenize("h\xc3\xa9").value(), (std::vector<int32_t>{'h', 0xc3, 0xa9}));
  EXPECT_EQ(client_->Detokenize({'h', 0xc3, 0xa9, 256}).value(), "h\xc3\xa9");
  EXPECT_EQ(client_->Detokenize({'h', 256}, true).value(), "h<eos>");
  EXPECT_EQ(client_->Detokenize({'h', 0xc3}).value(), "h\xef\xbf\xbd");
  EXPECT_EQ(client_->Detokenize({999}).status().code(), absl::StatusCode::kInvalidArgument);
}

TEST_F(WorkerServiceTest, AClientThatStopsReadingFreesEverything) {
  int parts = 0;
  auto answer = client_->Generate({"run"}, Leaf(2), Tokens(480), [&](const auto&) { return ++parts < 3; });
  EXPECT_EQ(answer.status().code(), absl::StatusCode::kCancelled);
  EXPECT_TRUE(Idle());
  EXPECT_LT(client_->GetStatus()->generated_tokens, 480u);
}

TEST_F(WorkerServiceTest, DeadlinesTravel) {
  tiny_->HoldBlock({1, 0});
  const auto begin = std::chrono::steady_clock::now();
  auto answer = Client(std::chrono::milliseconds(200))->Generate({"x"}, Leaf(0), Tokens(3), [](const auto&) { return true; });
  EXPECT_EQ(answer.status().code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::seconds(5));
  EXPECT_TRUE(Idle());
}

TEST_F(WorkerServiceTest, AFailedBlockSendsNothingBefore) {
  tiny_->FailBlock({2, 3}, absl::UnavailableError("server m1 is away"));
  int parts = 0;
  auto answer = client_->Generate({"x"}, Leaf(3), Tokens(3), [&](const auto&) { ++parts; return true; });
  EXPECT_EQ(answer.status().code(), absl::StatusCode::kUnavailable);
  EXPECT_NE(answer.status().message().find("block 2/3"), std::string::npos) << answer.status();
  EXPECT_EQ(parts, 0);
}

TEST_F(WorkerServiceTest, BadRequestsAreRefusedAndSayWhy) {
  auto expect = [&](const absl::Status& status, const std::string& part) {
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
    EXPECT_NE(status.message().find(part), std::string::npos) << status;
  };
  expect(Refusal({""}, {}, Tokens(1)), "no tokens");
  expect(Refusal({std::string(600, 'x')}, {}, Tokens(1)), "600 tokens, with at least one new token 601; the context holds 512");
  expect(Refusal({std::string(100000, 'x')}, {}, Tokens(1)), "100000 bytes; a context of 512 tokens holds at most 65536");
  expect(Refusal({"x"}, Leaf(16), Tokens(1)), "unknown path: leaf 16");
  WorkerClient::Sampling sampling = Tokens(1);
  sampling.top_p = 2;
  expect(Refusal({"x"}, {}, sampling), "top_p is 2");
  expect(client_->ScoreAll({}).status(), "nothing to score");
  expect(client_->ScoreAll({{{"a"}, {"b"}, {}}, {{"a"}, {""}, {}}}).status(), "item 1: the continuation has no tokens");
  expect(client_->ScoreAll(std::vector<WorkerClient::ScoreItem>(1025)).status(), "1025 items");

  // A request without a path: the worker never guesses.
  v1::GenerateRequest request;
  request.mutable_prompt()->set_text("x");
  grpc::ClientContext context;
  auto stub = Stub();
  auto reader = stub->Generate(&context, request);
  v1::GenerateChunk chunk;
  EXPECT_FALSE(reader->Read(&chunk));
  expect(FromGrpc(reader->Finish()), "mode");
}

TEST_F(WorkerServiceTest, TextThatIsNotUtf8IsRefused) {
  EXPECT_FALSE(Refusal({"caf\xe9"}, {}, Tokens(1)).ok());
  EXPECT_FALSE(client_->Tokenize("\xff").ok());
  EXPECT_TRUE(Refusal({"caf\xc3\xa9"}, {}, Tokens(1)).ok()) << "and the next request works";
}

TEST_F(WorkerServiceTest, StatusTellsWhatIsServed) {
  ASSERT_TRUE(Refusal({"x"}, Leaf(8), Tokens(2)).ok());
  auto stub = Stub();
  grpc::ClientContext context;
  v1::WorkerStatus status;
  ASSERT_TRUE(stub->GetStatus(&context, {}, &status).ok());
  EXPECT_EQ(status.model(), "tiny");
  EXPECT_EQ(status.anchor_fingerprint(), "tiny");
  EXPECT_EQ(status.bank().bank_id(), "tiny");
  EXPECT_EQ(status.bank_hash().size(), 32u);
  EXPECT_EQ(status.context(), 512u);
  ASSERT_EQ(status.resident_blocks_size(), 2);
  EXPECT_EQ(status.resident_blocks(1).cluster(), 8u);
  EXPECT_EQ(status.resident_bytes(), (8 + 4) * 3 * 2 * 32 * 4u);
  EXPECT_EQ(status.generated_tokens(), 2u);
  EXPECT_FALSE(status.draining());
}

TEST_F(WorkerServiceTest, DrainAnswersWhenIdleAndAtItsDeadline) {
  tiny_->HoldBlock({1, 1});
  std::thread waiting([&] { EXPECT_TRUE(Refusal({"x"}, Leaf(4), Tokens(2)).ok()); });
  while (client_->GetStatus()->queued == 0) std::this_thread::sleep_for(std::chrono::milliseconds(5));
  auto left = client_->Drain(std::chrono::milliseconds(400));
  ASSERT_TRUE(left.ok()) << left.status();
  EXPECT_EQ(*left, 1u);
  EXPECT_EQ(Refusal({"x"}, {}, Tokens(1)).code(), absl::StatusCode::kUnavailable);
  tiny_->ReleaseBlocks();
  waiting.join();
  EXPECT_EQ(client_->Drain(std::chrono::seconds(30)).value(), 0u);
}

}  // namespace
}  // namespace membank
