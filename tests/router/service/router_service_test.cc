// The router over gRPC, and the choice of workers.
#include "router/router_service.h"

#include <map>

#include "common/client/router_client.h"
#include "common/rpc/channel.h"
#include "gmock/gmock.h"
#include "tests/router/router_fixture.h"

namespace membank {
namespace {

using ::testing::HasSubstr;

struct Served : RouterUnderTest {
  explicit Served(int count = 1, bool with_tree = true, int with_private_bank = 0)
      : RouterUnderTest(count, with_tree, with_private_bank), service(*router, std::chrono::seconds(30)), rpc(RpcServer::Start({}, {&service}).value()),
        stub(v1::RouterService::NewStub(MakeChannels(rpc->address(), {}).value().front())) {}

  struct Reply {
    grpc::Status status;
    v1::RouteGenerateChunk first;
    std::string text;
    int parts = 0;
  };
  Reply Generate(const v1::RouteGenerateRequest& request) {
    grpc::ClientContext context;
    Reply reply;
    auto reader = stub->Generate(&context, request);
    for (v1::RouteGenerateChunk chunk; reader->Read(&chunk); ++reply.parts) {
      if (reply.parts == 0) reply.first = chunk;
      reply.text += chunk.chunk().text();
    }
    reply.status = reader->Finish();
    return reply;
  }

  RouterServiceImpl service;
  std::unique_ptr<RpcServer> rpc;
  std::unique_ptr<v1::RouterService::Stub> stub;
};

v1::RouteGenerateRequest Ask(const std::string& prompt, uint32_t max_tokens = 3) {
  v1::RouteGenerateRequest request;
  request.mutable_prompt()->set_text(prompt);
  request.mutable_sampling()->set_max_tokens(max_tokens);
  return request;
}

TEST(RouterServiceTest, ResolvesThePromptOnceAndNamesThePath) {
  Served served;
  const auto reply = served.Generate(Ask("seven by"));  // 8 bytes: leaf 8
  ASSERT_TRUE(reply.status.ok()) << reply.status.error_message();
  EXPECT_EQ(reply.text, " one two three");
  EXPECT_EQ(reply.first.chunk().start().memory().path_text(), "2.0");
  EXPECT_EQ(reply.first.chunk().start().memory().bank_version(), "v7");
  EXPECT_EQ(reply.first.resolution().path_text(), "2.0");
  EXPECT_EQ(reply.first.resolution().levels(1).distance(), 0.125f);
  EXPECT_EQ(reply.first.worker(), served.servers[0]->address());
  EXPECT_THAT(served.paths.texts(), testing::ElementsAre("seven by"));
}

TEST(RouterServiceTest, RetrieveOnAndExplicitPathAndModes) {
  Served served;
  v1::RouteGenerateRequest request = Ask("prompt");
  request.mutable_memory()->set_retrieve_on("abc");
  EXPECT_EQ(served.Generate(request).first.chunk().start().memory().path_text(), "0.3");
  request.mutable_memory()->set_path("3.2");
  EXPECT_EQ(served.Generate(request).first.chunk().start().memory().path_text(), "3.2");
  EXPECT_FALSE(served.Generate(request).first.has_resolution());
  request.mutable_memory()->clear_source();
  request.mutable_memory()->set_mode(v1::MEMORY_MODE_GENERIC);
  EXPECT_EQ(served.Generate(request).first.chunk().start().memory().path_text(), "generic");
  request.mutable_memory()->set_mode(v1::MEMORY_MODE_NONE);
  EXPECT_EQ(served.Generate(request).first.chunk().start().memory().path_text(), "none");
}

TEST(RouterServiceTest, TokenPromptsAreResolvedByTheirText) {
  Served served;
  v1::RouteGenerateRequest request = Ask("");
  for (const char c : std::string("hello")) request.mutable_prompt()->mutable_tokens()->add_ids(c);
  EXPECT_EQ(served.Generate(request).first.chunk().start().memory().path_text(), "1.1");
  EXPECT_THAT(served.paths.texts(), testing::ElementsAre("hello"));
}

TEST(RouterServiceTest, BadRequestsSayWhatIsWrong) {
  Served served;
  const auto error = [&](const v1::RouteGenerateRequest& request) { return served.Generate(request).status; };
  v1::RouteGenerateRequest request = Ask("x");
  request.mutable_memory()->set_path("9.9");
  EXPECT_EQ(error(request).error_code(), grpc::INVALID_ARGUMENT);
  EXPECT_THAT(error(request).error_message(), HasSubstr("memory.path"));
  request.mutable_memory()->set_path("generic");
  EXPECT_THAT(error(request).error_message(), HasSubstr("child numbers from the root"));
  request.mutable_memory()->set_mode(v1::MEMORY_MODE_NONE);
  EXPECT_THAT(error(request).error_message(), HasSubstr("go with mode fetched only"));
  EXPECT_THAT(error(Ask("")).error_message(), HasSubstr("no text to find a path with"));
  request = Ask("x");
  request.mutable_memory()->set_bank("other");
  EXPECT_EQ(error(request).error_code(), grpc::FAILED_PRECONDITION);
  EXPECT_THAT(error(request).error_message(), testing::AllOf(HasSubstr("'other'"), HasSubstr("'fake-bank'")));
  EXPECT_EQ(served.fake().generate_calls, 0);
}

TEST(RouterServiceTest, WithoutATreeOnlyExplicitPaths) {
  Served served(1, false);
  EXPECT_EQ(served.Generate(Ask("x")).first.chunk().start().memory().path_text(), "none");
  v1::RouteGenerateRequest request = Ask("x");
  request.mutable_memory()->set_path("2.1");
  EXPECT_EQ(served.Generate(request).first.chunk().start().memory().path_text(), "2.1");
  request.mutable_memory()->clear_source();
  request.mutable_memory()->set_mode(v1::MEMORY_MODE_FETCHED);
  EXPECT_THAT(served.Generate(request).status.error_message(), HasSubstr("started without --tree"));
}

TEST(RouterServiceTest, AnotherWorkerAnswersWhenNothingWasStreamed) {
  for (const grpc::StatusCode code : {grpc::UNAVAILABLE, grpc::RESOURCE_EXHAUSTED}) {
    Served served(2);
    served.fake(0).fail_generate = code;
    for (int i = 0; i < 16; ++i) EXPECT_TRUE(served.Generate(Ask(std::string(i + 1, 'x'))).status.ok());
    EXPECT_EQ(served.fake(1).generate_calls, 16);
    served.fake(1).fail_generate = code;
    EXPECT_EQ(served.Generate(Ask("x")).status.error_code(), code);
  }
}

TEST(RouterServiceTest, ABrokenStreamIsNotRetried) {
  Served served(2);
  served.fake(0).fail_after_tokens = 2;
  served.fake(1).fail_after_tokens = 2;
  const auto reply = served.Generate(Ask("x", 5));
  EXPECT_EQ(reply.status.error_code(), grpc::UNAVAILABLE);
  EXPECT_EQ(reply.text, " one two");
  EXPECT_EQ(served.fake(0).generate_calls + served.fake(1).generate_calls, 1);
}

TEST(RouterServiceTest, OtherErrorsAreTheCallers) {
  Served served(2);
  served.fake(0).fail_generate = grpc::INVALID_ARGUMENT;
  served.fake(1).fail_generate = grpc::INVALID_ARGUMENT;
  EXPECT_EQ(served.Generate(Ask("x")).status.error_code(), grpc::INVALID_ARGUMENT);
  EXPECT_EQ(served.fake(0).generate_calls + served.fake(1).generate_calls, 1);
}

TEST(RouterServiceTest, CancelAndDeadlineReachTheWorker) {
  Served served;
  served.fake().token_delay_ms = 20;
  {
    grpc::ClientContext context;
    auto reader = served.stub->Generate(&context, Ask("x", 1000));
    v1::RouteGenerateChunk chunk;
    ASSERT_TRUE(reader->Read(&chunk));
    context.TryCancel();
    while (reader->Read(&chunk)) {
    }
    EXPECT_EQ(reader->Finish().error_code(), grpc::CANCELLED);
  }
  EXPECT_TRUE(RouterUnderTest::WaitFor([&] { return served.fake().cancelled == 1; }));
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::milliseconds(150));
  auto reader = served.stub->Generate(&context, Ask("x", 1000));
  for (v1::RouteGenerateChunk chunk; reader->Read(&chunk);) {
  }
  EXPECT_EQ(reader->Finish().error_code(), grpc::DEADLINE_EXCEEDED);
  EXPECT_TRUE(RouterUnderTest::WaitFor([&] { return served.fake().cancelled == 2 && served.fake().running == 0; }));
  EXPECT_EQ(served.pool->States().front().in_flight(), 0u);
}

TEST(RouterServiceTest, StopTextsThatAreSpecialTokensBecomeTokens) {
  Served served;
  v1::RouteGenerateRequest request = Ask("x");
  for (const char* stop : {"plain", "<|im_end|>", "<|no_such_token|>"}) request.mutable_sampling()->add_stop(stop);
  ASSERT_TRUE(served.Generate(request).status.ok());
  EXPECT_EQ(served.fake().last_request().sampling().stop_size(), 3);  // without special tokens all are texts
  request.mutable_prompt()->set_parse_special(true);
  for (int i = 0; i < 2; ++i) {
    ASSERT_TRUE(served.Generate(request).status.ok());
    const v1::Sampling sampling = served.fake().last_request().sampling();
    EXPECT_THAT(sampling.stop(), testing::ElementsAre("plain", "<|no_such_token|>"));
    EXPECT_THAT(sampling.stop_tokens(), testing::ElementsAre(FakeWorker::kChatEndToken));
  }
}

TEST(RouterServiceTest, ScoreResolvesEachItem) {
  Served served;
  v1::RouteScoreRequest request;
  v1::RouteScoreItem& a = *request.add_items();
  a.mutable_context()->set_text("four");
  a.mutable_continuation()->set_text("ab");
  v1::RouteScoreItem& b = *request.add_items();
  b.mutable_continuation()->set_text("whole document");  // no context: resolved from the continuation, 14 bytes
  v1::RouteScoreItem& c = *request.add_items();
  c.mutable_continuation()->set_text("z");
  c.mutable_memory()->set_mode(v1::MEMORY_MODE_NONE);
  grpc::ClientContext context;
  v1::RouteScoreReply reply;
  ASSERT_TRUE(served.stub->Score(&context, request, &reply).ok());
  ASSERT_EQ(reply.results_size(), 3);
  EXPECT_EQ(reply.results(0).memory().path_text(), "1.0");
  EXPECT_NEAR(reply.results(0).sum(), -2.08, 1e-5);
  EXPECT_EQ(reply.results(1).memory().path_text(), "3.2");
  EXPECT_EQ(reply.results(2).memory().path_text(), "none");
  grpc::ClientContext empty;
  EXPECT_EQ(served.stub->Score(&empty, v1::RouteScoreRequest(), &reply).error_code(), grpc::INVALID_ARGUMENT);
}

TEST(RouterServiceTest, ResolveAndStatus) {
  Served served;
  grpc::ClientContext context;
  v1::ResolveRequest request;
  request.add_texts("a");
  request.add_texts("abcdef");
  v1::ResolveReply reply;
  ASSERT_TRUE(served.stub->Resolve(&context, request, &reply).ok());
  EXPECT_EQ(reply.resolutions(1).path_text(), "1.2");
  grpc::ClientContext status_context;
  v1::RouterStatus status;
  ASSERT_TRUE(served.stub->Status(&status_context, v1::RouterStatusRequest(), &status).ok());
  EXPECT_EQ(status.fan_out(), 4u);
  EXPECT_EQ(status.tree_fingerprint(), "tree");
  EXPECT_TRUE(status.workers(0).healthy());
  const auto workers = WorkersOf(served.rpc->address(), {}, std::chrono::seconds(10));
  ASSERT_TRUE(workers.ok()) << workers.status();
  EXPECT_THAT(*workers, testing::ElementsAre(served.servers[0]->address()));
}

TEST(StackedBanksTest, OneTextFindsAPathPerBank) {
  Served served(1, true, 1);
  const auto reply = served.Generate(Ask("seven by"));  // 8 bytes: leaf 8, and 0 in the private tree
  ASSERT_TRUE(reply.status.ok()) << reply.status.error_message();
  const v1::MemoryUsed& used = reply.first.chunk().start().memory();
  EXPECT_EQ(used.path_text(), "2.0");
  EXPECT_EQ(used.stacked(0).path_text(), "0");
  EXPECT_EQ(reply.first.resolution().bank(), "fake-bank");
  EXPECT_EQ(reply.first.resolution().stacked(0).bank(), "private");
  EXPECT_EQ(reply.first.resolution().stacked(0).levels(0).distance(), 0.5f);
  EXPECT_THAT(served.paths.texts(), testing::ElementsAre("seven by"));

  v1::RouteGenerateRequest request = Ask("x");
  request.mutable_memory()->add_banks("private");
  const auto own = served.Generate(request);
  EXPECT_EQ(own.first.chunk().start().memory().left_out(), v1::LEFT_OUT_NOT_ASKED_FOR);
  EXPECT_EQ(own.first.chunk().start().memory().stacked(0).path_text(), "1");
  EXPECT_FALSE(own.first.resolution().has_path());
  EXPECT_EQ(own.first.resolution().stacked_size(), 1);
  request.mutable_memory()->clear_banks();
  request.mutable_memory()->set_path("3.1");
  request.mutable_memory()->add_levels(1);
  EXPECT_EQ(served.Generate(request).first.chunk().start().memory().stacked(0).left_out(), v1::LEFT_OUT_NOT_ASKED_FOR);
  (*request.mutable_memory()->mutable_paths())["private"] = "1";
  EXPECT_EQ(served.Generate(request).first.chunk().start().memory().stacked(0).path_text(), "1");
  EXPECT_THAT(served.fake().last_request().stacked(0).levels(), testing::ElementsAre(1));

  v1::RouteScoreRequest score;
  score.add_items()->mutable_continuation()->set_text("abc");
  grpc::ClientContext score_context, resolve_context, status_context;
  v1::RouteScoreReply scores;
  ASSERT_TRUE(served.stub->Score(&score_context, score, &scores).ok());
  EXPECT_EQ(scores.results(0).memory().stacked(0).path_text(), "1");
  v1::ResolveRequest resolve;
  resolve.add_texts("ab");
  v1::ResolveReply places;
  ASSERT_TRUE(served.stub->Resolve(&resolve_context, resolve, &places).ok());
  EXPECT_EQ(places.resolutions(0).path_text(), "0.2");
  EXPECT_EQ(places.resolutions(0).stacked(0).path_text(), "0");
  v1::RouterStatus status;
  ASSERT_TRUE(served.stub->Status(&status_context, v1::RouterStatusRequest(), &status).ok());
  EXPECT_EQ(status.trees(1).fingerprint(), "private tree");
}

TEST(StackedBanksTest, OnlyWorkersThatHaveTheBanksAreUsed) {
  Served served(2, true, 1);
  for (int i = 0; i < 8; ++i) ASSERT_TRUE(served.Generate(Ask(std::string(i + 1, 'x'))).status.ok());
  EXPECT_EQ(served.fake(0).generate_calls, 8);
  v1::RouteGenerateRequest first_only = Ask("x");
  first_only.mutable_memory()->add_banks("fake-bank");
  for (int i = 0; i < 16; ++i) {
    first_only.mutable_memory()->set_path(std::to_string(i / 4) + "." + std::to_string(i % 4));
    ASSERT_TRUE(served.Generate(first_only).status.ok());
  }
  EXPECT_GT(served.fake(1).generate_calls, 0);
  served.fake(0).fail_generate = grpc::RESOURCE_EXHAUSTED;
  const grpc::Status full = served.Generate(Ask("x")).status;
  EXPECT_EQ(full.error_code(), grpc::RESOURCE_EXHAUSTED) << full.error_message();
}

TEST(WorkerPoolTest, APathPrefersOneWorkerAndPathsSpread) {
  RouterUnderTest under_test(4);
  std::map<std::string, int> paths_of;
  for (uint64_t leaf = 0; leaf < 256; ++leaf) {
    const std::string first = under_test.pool->Pick(leaf)->address();
    EXPECT_EQ(under_test.pool->Pick(leaf)->address(), first);
    ++paths_of[first];
  }
  for (const auto& [address, count] : paths_of) EXPECT_GT(count, 256 / 4 / 2) << address;
  EXPECT_EQ(paths_of.size(), 4u);
}

TEST(WorkerPoolTest, AnOverloadedWorkerLosesItsPath) {
  RouterUnderTest under_test(4);
  std::map<std::string, int> load;
  std::vector<WorkerPool::Lease> leases;
  for (int i = 0; i < 40; ++i) {
    leases.push_back(under_test.pool->Pick(uint64_t{7}).value());
    ++load[leases.back().address()];
  }
  for (const auto& [address, count] : load) EXPECT_LE(count, 13) << address;  // 1.25 x 40 / 4, rounded up
  EXPECT_EQ(load.size(), 4u);
}

TEST(WorkerPoolTest, WithoutAPathTheLeastLoaded) {
  RouterUnderTest under_test(3);
  std::set<std::string> used;
  std::vector<WorkerPool::Lease> leases;
  for (int i = 0; i < 3; ++i) {
    leases.push_back(under_test.pool->Pick(std::nullopt).value());
    used.insert(leases.back().address());
  }
  EXPECT_EQ(used.size(), 3u);
}

TEST(WorkerPoolTest, DrainingAndForeignTreesAndDeadWorkersAreNotUsed) {
  RouterUnderTest under_test(3);
  under_test.fake(0).draining = true;
  under_test.fake(1).tree_fingerprint = "another";
  under_test.servers[2]->Shutdown(std::chrono::milliseconds(0));
  ASSERT_TRUE(RouterUnderTest::WaitFor([&] { return under_test.Healthy() == 0; }));
  const absl::Status status = under_test.pool->Pick(std::nullopt).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(status.message()), testing::AllOf(HasSubstr("draining"),
                                                            HasSubstr("made with tree another, this router has tree tree, private tree")));
  under_test.fake(0).draining = false;
  EXPECT_TRUE(RouterUnderTest::WaitFor([&] { return under_test.Healthy() == 1; }));
}

TEST(WorkerPoolTest, BadListsAreRefused) {
  EXPECT_EQ(WorkerPool::Create({}).status().code(), absl::StatusCode::kInvalidArgument);
  WorkerPoolOptions twice;
  twice.workers = {"127.0.0.1:1", "127.0.0.1:1"};
  EXPECT_THAT(std::string(WorkerPool::Create(twice).status().message()), HasSubstr("listed twice"));
}

}  // namespace
}  // namespace membank
