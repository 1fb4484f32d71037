// The worker's client against a service that records what it is asked. A real worker answers it in tests/model_worker/service.
#include "common/client/worker_client.h"

#include "common/rpc/server.h"
#include "gtest/gtest.h"
#include "membank/v1/worker.grpc.pb.h"

namespace membank {
namespace {

class FakeWorker final : public v1::WorkerService::Service {
 public:
  grpc::Status Generate(grpc::ServerContext*, const v1::GenerateRequest* request, grpc::ServerWriter<v1::GenerateChunk>* writer) override {
    generate = *request;
    v1::GenerateChunk chunk;
    chunk.mutable_start()->mutable_memory()->set_path_text("1.2");
    chunk.set_text("one");
    v1::GeneratedToken* token = chunk.add_tokens();
    token->set_id(7);
    token->set_text("\xc3");
    token->set_logprob(-0.5);
    writer->Write(chunk);
    chunk.Clear();
    chunk.set_text("two");
    chunk.mutable_end()->set_finish_reason(v1::FINISH_REASON_STOP);
    chunk.mutable_end()->set_completion_tokens(2);
    writer->Write(chunk);
    return grpc::Status::OK;
  }
  grpc::Status Score(grpc::ServerContext*, const v1::ScoreRequest*, v1::ScoreReply*) override {
    return grpc::Status(grpc::StatusCode::RESOURCE_EXHAUSTED, "full");
  }

  v1::GenerateRequest generate;
};

class WorkerClientTest : public ::testing::Test {
 protected:
  void SetUp() override {
    server_ = RpcServer::Start({}, {&worker_}).value();
    client_ = WorkerClient::Create({.address = server_->address()}).value();
  }

  FakeWorker worker_;
  std::unique_ptr<RpcServer> server_;
  std::unique_ptr<WorkerClient> client_;
};

TEST_F(WorkerClientTest, SendsEveryFieldAndReadsTheStream) {
  WorkerClient::Sampling sampling;
  sampling.max_tokens = 5;
  sampling.temperature = 0.5;
  sampling.top_p = 0.25;
  sampling.top_k = 3;
  sampling.seed = 1ull << 40;
  sampling.stop = {"x"};
  sampling.stop_tokens = {4};
  sampling.ignore_eos = sampling.echo = true;
  sampling.logprobs = 0;
  std::string text;
  std::vector<WorkerClient::Token> tokens;
  auto answer = client_->Generate({"prompt", {}, true}, {{MemoryMode::kFetched, 2, 6}, {2}}, sampling, [&](const auto& part) {
    text += part.text;
    tokens.insert(tokens.end(), part.tokens.begin(), part.tokens.end());
    return true;
  });
  ASSERT_TRUE(answer.ok()) << answer.status();
  EXPECT_EQ(text, "onetwo");
  ASSERT_EQ(tokens.size(), 1u);
  EXPECT_EQ(tokens[0].bytes, "\xc3");
  EXPECT_FLOAT_EQ(*tokens[0].logprob, -0.5);
  EXPECT_EQ(answer->path, "1.2");
  EXPECT_EQ(answer->finish_reason, "stop");
  EXPECT_EQ(answer->completion_tokens, 2u);
  const v1::Sampling& sent = worker_.generate.sampling();
  EXPECT_EQ(sent.max_tokens(), 5u);
  EXPECT_EQ(sent.temperature(), 0.5f);
  EXPECT_EQ(sent.top_p(), 0.25f);
  EXPECT_EQ(sent.top_k(), 3u);
  EXPECT_EQ(sent.seed(), 1ull << 40);
  EXPECT_EQ(sent.stop(0), "x");
  EXPECT_EQ(sent.stop_tokens(0), 4);
  EXPECT_TRUE(sent.ignore_eos() && sent.echo() && sent.has_logprobs());
  EXPECT_EQ(worker_.generate.prompt().text(), "prompt");
  EXPECT_TRUE(worker_.generate.prompt().parse_special());
  EXPECT_EQ(worker_.generate.path().leaf(), 6u);
  EXPECT_EQ(worker_.generate.levels(0), 2u);
}

TEST_F(WorkerClientTest, ErrorsNameTheWorker) {
  const absl::Status status = client_->ScoreAll({{}}).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_NE(status.message().find(server_->address()), std::string::npos) << status;
  EXPECT_EQ(client_->GetStatus().status().code(), absl::StatusCode::kUnimplemented);
}

TEST_F(WorkerClientTest, AWorkerThatIsAwayIsUnavailable) {
  server_->Shutdown(std::chrono::milliseconds(0));
  const absl::Status status = client_->Tokenize("x").status();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable) << status;
}

}  // namespace
}  // namespace membank
