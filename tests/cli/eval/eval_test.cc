// `membank eval`: the arithmetic, and both kinds against a router with a fake worker.
#include "cli/eval.h"

#include <fstream>

#include "cli/eval_scoring.h"
#include "common/base/file.h"
#include "common/client/router_client.h"
#include "gmock/gmock.h"
#include "nlohmann/json.hpp"
#include "router/router_service.h"
#include "tests/router/router_fixture.h"

namespace membank {
namespace {

using nlohmann::json;
using ::testing::HasSubstr;

TEST(BeginsWithAnswerTest, NeedsTheWholeWordOrNumber) {
  EXPECT_TRUE(BeginsWithAnswer(" 72", "72"));
  EXPECT_TRUE(BeginsWithAnswer(" 72 and symbol Hf", "72"));
  EXPECT_TRUE(BeginsWithAnswer("72.", "72"));
  EXPECT_TRUE(BeginsWithAnswer("72, Hf", " 72 "));
  EXPECT_FALSE(BeginsWithAnswer(" 720", "72"));
  EXPECT_FALSE(BeginsWithAnswer(" 7", "72"));
  EXPECT_FALSE(BeginsWithAnswer(" 72.5", "72"));
  EXPECT_FALSE(BeginsWithAnswer(" 72,500", "72"));
  EXPECT_FALSE(BeginsWithAnswer(" is 72", "72"));
  EXPECT_TRUE(BeginsWithAnswer(" Paris, France", "paris"));
  EXPECT_FALSE(BeginsWithAnswer(" Parisian", "Paris"));
  EXPECT_FALSE(BeginsWithAnswer(" Par\xC3\xA9", "Par"));
  EXPECT_FALSE(BeginsWithAnswer("", "72"));
  EXPECT_FALSE(BeginsWithAnswer("72", ""));
}

TEST(OtherPathsTest, ComeFromOtherTextsOfAnotherSubtree) {
  const auto path = [](uint32_t leaf) { return BlockPath{MemoryMode::kFetched, 2, leaf}; };
  const std::vector<BlockPath> paths = {path(0), path(1), path(5), path(9), path(1)};
  const std::vector<BlockPath> others = OtherPaths(paths, 4);
  ASSERT_EQ(others.size(), paths.size());
  for (size_t i = 0; i < paths.size(); ++i) {
    EXPECT_NE(ClusterAt(others[i], 4, 1), ClusterAt(paths[i], 4, 1));
    EXPECT_NE(std::find(paths.begin(), paths.end(), others[i]), paths.end());
  }
  EXPECT_EQ(others[1], others[4]);
  EXPECT_EQ(OtherPaths({path(3)}, 4)[0].leaf, 11u);
}

TEST(BootstrapRatioTest, IsTheRatioOfSumsWithAnIntervalAroundIt) {
  const Interval certain = BootstrapRatio({2, 2, 2}, {1, 1, 1});
  EXPECT_EQ(certain.mean, 2);
  EXPECT_EQ(certain.low, 2);
  EXPECT_EQ(certain.high, 2);
  std::vector<double> right(100, 0), ones(100, 1);
  for (int i = 0; i < 30; ++i) right[i] = 1;
  const Interval third = BootstrapRatio(right, ones);
  EXPECT_NEAR(third.mean, 0.3, 1e-12);
  EXPECT_NEAR(third.low, 0.21, 0.03);   // 0.3 -+ 1.96 sqrt(0.3 0.7 / 100)
  EXPECT_NEAR(third.high, 0.39, 0.03);
  EXPECT_NEAR(BootstrapRatio({1, 30}, {1, 10}).mean, 31.0 / 11, 1e-12);
  EXPECT_EQ(BootstrapRatio({}, {}).mean, 0);
}

struct Served : RouterUnderTest {
  explicit Served(int with_private_bank = 0)
      : RouterUnderTest(1, true, with_private_bank), service(*router, std::chrono::seconds(30)), rpc(RpcServer::Start({}, {&service}).value()) {
    options.router = rpc->address();
    options.json = testing::TempDir() + "eval_out.json";
  }
  void Input(const std::string& lines) {
    options.input = testing::TempDir() + "eval_in.jsonl";
    std::ofstream(options.input) << lines;
  }
  json Output() { return json::parse(*ReadFile(options.json)); }

  RouterServiceImpl service;
  std::unique_ptr<RpcServer> rpc;
  EvalOptions options;
};

TEST(EvalTest, ClozeCountsExactMatches) {
  Served served;
  served.Input("{\"prompt\": \"a\", \"answer\": \"one\", \"group\": \"g\"}\n\n"
               "{\"prompt\": \"bb\", \"answer\": \"two\"}\n"
               "{\"prompt\": \"ccccc\", \"answer\": \"One two\", \"path_text\": \"3.3\"}\n");
  testing::internal::CaptureStdout();
  const absl::Status status = RunCloze(served.options);
  const std::string table = testing::internal::GetCapturedStdout();
  ASSERT_TRUE(status.ok()) << status;
  EXPECT_THAT(table, HasSubstr("2/3"));
  const json out = served.Output();
  EXPECT_EQ(out["items"], 3);
  EXPECT_EQ(out["bank_version"], "v7");
  EXPECT_EQ(out["modes"]["fetched"]["correct"], 2);
  EXPECT_NEAR(out["modes"]["none"]["accuracy"].get<double>(), 2.0 / 3, 1e-9);
  EXPECT_EQ(out["modes"]["fetched"]["groups"]["g"]["count"], 1);
  EXPECT_EQ(out["answers"][0]["modes"]["fetched"]["path"], "0.1");
  EXPECT_EQ(out["answers"][2]["modes"]["fetched"]["path"], "3.3");
  EXPECT_EQ(out["answers"][0]["modes"]["generic"]["path"], "generic");
  EXPECT_EQ(out["answers"][0]["modes"]["none"]["path"], "none");
  EXPECT_EQ(out["answers"][0]["modes"]["other"]["path"], "3.3");
  EXPECT_EQ(served.fake().generate_calls, 12);
}

TEST(EvalTest, ClozeRunsRequestsTogether) {
  Served served;
  served.fake().token_delay_ms = 5;
  std::string lines;
  for (int i = 0; i < 32; ++i) lines += json{{"prompt", std::string(i + 1, 'x')}, {"answer", i}}.dump() + "\n";
  served.Input(lines);
  served.options.modes = {"fetched"};
  ASSERT_TRUE(RunCloze(served.options).ok());
  EXPECT_GT(served.fake().most_running, 4);
  EXPECT_LE(served.fake().most_running, 8);
}

// The fake worker's loss per token is 1 + leaf / 100.
TEST(EvalTest, LossIsTheMeanOverTokensUnderEachMemory) {
  Served served;
  served.Input("{\"text\": \"12345678\"}\n{\"text\": \"ab\"}\n");  // leaves 8 and 2
  ASSERT_TRUE(RunLoss(served.options).ok());
  const json modes = served.Output()["modes"];
  EXPECT_EQ(modes["fetched"]["tokens"], 10);
  EXPECT_NEAR(modes["fetched"]["loss"].get<double>(), (8 * 1.08 + 2 * 1.02) / 10, 1e-5);
  EXPECT_NEAR(modes["other"]["loss"].get<double>(), (8 * 1.02 + 2 * 1.08) / 10, 1e-5);
  EXPECT_NEAR(modes["none"]["loss"].get<double>(), 1, 1e-5);
}

TEST(EvalTest, StackedBanksAreMeasuredTogetherOrAlone) {
  Served served(1);
  served.Input("{\"text\": \"1234567\", \"path_text\": \"2.0\"}\n{\"text\": \"ab\"}\n");  // in the private tree: 1 and 0
  served.options.modes = {"fetched", "other", "generic"};
  ASSERT_TRUE(RunLoss(served.options).ok());
  json out = served.Output();
  EXPECT_EQ(out["banks"], (json{{{"bank", "fake-bank"}, {"bank_version", "v7"}}, {{"bank", "private"}, {"bank_version", "p1"}}}));
  EXPECT_EQ(out["answers"][0]["modes"]["fetched"]["path"], "2.0");
  EXPECT_EQ(out["answers"][0]["modes"]["fetched"]["paths"]["private"], "1");
  EXPECT_EQ(out["answers"][0]["modes"]["other"]["path"], "0.2");
  EXPECT_EQ(out["answers"][0]["modes"]["other"]["paths"]["private"], "0");
  EXPECT_EQ(out["answers"][1]["modes"]["generic"]["paths"]["private"], "generic");
  EXPECT_FALSE(out.contains("left_out"));
  served.options.banks = {"private"};
  served.fake().may_read_private = false;
  ASSERT_TRUE(RunLoss(served.options).ok());
  out = served.Output();
  EXPECT_EQ(out["answers"][0]["modes"]["fetched"]["path"], "none");
  EXPECT_EQ(out["answers"][0]["modes"]["fetched"]["paths"]["private"], "no rights");
  EXPECT_EQ(out["left_out"]["private"], 6);
  served.options.banks = {"secret"};
  EXPECT_THAT(std::string(RunLoss(served.options).message()), HasSubstr("the banks served are: fake-bank, private"));
}

TEST(EvalTest, BadInputNamesTheLine) {
  Served served;
  const auto error = [&](const std::string& lines) {
    served.Input(lines);
    return std::string(RunCloze(served.options).message());
  };
  EXPECT_THAT(error("{\"prompt\": \"a\", \"answer\": \"b\"}\n{\"prompt\": \"a\"}\n"), HasSubstr("eval_in.jsonl:2: field \"answer\" is missing"));
  EXPECT_THAT(error("nonsense\n"), HasSubstr(":1: not a JSON object"));
  EXPECT_THAT(error("{\"prompt\": [], \"answer\": \"b\"}\n"), HasSubstr("field \"prompt\" is a array"));
  EXPECT_THAT(error("\n"), HasSubstr("holds no questions"));
  served.options.modes = {"fetched", "magic"};
  EXPECT_THAT(error("{\"prompt\": \"a\", \"answer\": \"b\"}\n"), HasSubstr("'magic' is not one of"));
}

TEST(EvalTest, AWorkersErrorNamesTheItem) {
  Served served;
  served.fake().fail_generate = grpc::INVALID_ARGUMENT;
  served.Input("{\"prompt\": \"a\", \"answer\": \"b\"}\n");
  EXPECT_THAT(std::string(RunCloze(served.options).message()), testing::AllOf(HasSubstr("eval_in.jsonl:1, memory fetched"), HasSubstr("refuses")));
}

TEST(RouterClientTest, ReportsEachBank) {
  Served served(1);
  served.fake().may_read_private = false;
  auto client = RouterClient::Connect(served.rpc->address()).value();
  EXPECT_EQ(client->Status()->banks[1].bank_id, "private");
  RouterGenerateRequest request;
  request.prompt = "1234567";
  request.memory.paths["fake-bank"] = "1.2";
  request.memory.banks = {"fake-bank", "private"};
  const auto reply = client->Generate(request);
  ASSERT_TRUE(reply.ok()) << reply.status();
  EXPECT_EQ(reply->memory.path_text, "1.2");
  EXPECT_TRUE(reply->memory.distances.empty());
  ASSERT_EQ(reply->memory.stacked.size(), 1u);
  EXPECT_TRUE(reply->memory.stacked[0].no_rights);
  EXPECT_THAT(reply->memory.stacked[0].distances, testing::ElementsAre(0.5f));
  EXPECT_EQ((*client->Resolve({"a"}))[0].stacked[0].path_text, "1");
}

TEST(RouterClientTest, StreamsAndReports) {
  Served served;
  auto client = RouterClient::Connect(served.rpc->address()).value();
  EXPECT_EQ(client->Status()->model, "fake-model");
  RouterGenerateRequest request;
  request.prompt = "12345678";
  request.max_tokens = 3;
  std::vector<std::string> pieces;
  const auto reply = client->Generate(request, [&](std::string_view text) {
    pieces.emplace_back(text);
    return true;
  });
  ASSERT_TRUE(reply.ok()) << reply.status();
  EXPECT_THAT(pieces, testing::ElementsAre(" one", " two", " three"));
  EXPECT_EQ(reply->text, " one two three");
  EXPECT_EQ(reply->memory.path_text, "2.0");
  EXPECT_THAT(reply->memory.distances, testing::ElementsAre(0.25f, 0.125f));
  EXPECT_EQ(reply->completion_tokens, 3u);
  const auto broken_off = client->Generate(request, [](std::string_view) { return false; });
  EXPECT_TRUE(broken_off.ok());
  EXPECT_EQ(RouterClient::Connect("127.0.0.1:1", std::chrono::milliseconds(200)).status().code(), absl::StatusCode::kUnavailable);
}

}  // namespace
}  // namespace membank
