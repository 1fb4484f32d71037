// OpenAI's API against a router with fake workers.
#include "router/http/openai_service.h"

#include <cstring>

#include "absl/strings/escaping.h"
#include "gmock/gmock.h"
#include "tests/router/http_client.h"
#include "tests/router/router_fixture.h"

namespace membank {
namespace {

using nlohmann::json;
using ::testing::HasSubstr;

struct Served : RouterUnderTest {
  explicit Served(int count = 1, bool with_tree = true, HttpServerOptions options = {}, int with_private_bank = 0)
      : RouterUnderTest(count, with_tree, with_private_bank), service(*router, std::chrono::seconds(30)) {
    http = HttpServer::Start(options, service.Routes()).value();
  }

  HttpTestClient::Reply Post(const std::string& path, const std::string& body) { return HttpTestClient(http->address()).Call("POST", path, body); }
  json Ok(const std::string& path, const json& body) {
    const auto reply = Post(path, body.dump());
    EXPECT_EQ(reply.status, 200) << reply.body;
    return json::parse(reply.body, nullptr, false);
  }
  // The error object; checks the status.
  json Error(int status, const std::string& path, const std::string& body) {
    const auto reply = Post(path, body);
    EXPECT_EQ(reply.status, status) << reply.body;
    const json parsed = json::parse(reply.body, nullptr, false);
    EXPECT_TRUE(parsed.contains("error")) << reply.body;
    return parsed.value("error", json::object());
  }

  OpenAiService service;
  std::unique_ptr<HttpServer> http;
};

TEST(CompletionsTest, AnswersAndNamesTheMemory) {
  Served served;
  const json reply = served.Ok("/v1/completions", {{"model", "fake-model"}, {"prompt", "12345678"}, {"max_tokens", 3}, {"seed", 5}, {"temperature", 0}});
  EXPECT_EQ(reply["object"], "text_completion");
  EXPECT_EQ(reply["model"], "fake-model");
  EXPECT_EQ(reply["choices"][0]["text"], " one two three");
  EXPECT_EQ(reply["choices"][0]["finish_reason"], "length");
  EXPECT_EQ(reply["usage"], (json{{"prompt_tokens", 8}, {"completion_tokens", 3}, {"total_tokens", 11}}));
  EXPECT_EQ(reply["memory"]["mode"], "fetched");
  EXPECT_EQ(reply["memory"]["path"], "2.0");
  EXPECT_EQ(reply["memory"]["blocks"], (json{"1/2", "2/8"}));
  EXPECT_EQ(reply["memory"]["distances"], (json{0.25, 0.125}));
  EXPECT_EQ(reply["memory"]["bank_version"], "v7");
  EXPECT_EQ(served.fake().last_request().sampling().seed(), 5u);
  EXPECT_EQ(served.fake().last_request().sampling().temperature(), 0);
}

TEST(CompletionsTest, TheReplyNamesTheModelThatAnswered) {
  Served served;
  EXPECT_EQ(served.Ok("/v1/completions", {{"model", "gpt-9"}, {"prompt", "a"}})["model"], "fake-model");
}

TEST(CompletionsTest, MemoryOfTheRequest) {
  Served served;
  const auto path = [&](const json& memory) {
    return served.Ok("/v1/completions", {{"prompt", "p"}, {"max_tokens", 1}, {"memory", memory}})["memory"]["path"].get<std::string>();
  };
  EXPECT_EQ(path({{"mode", "none"}}), "none");
  EXPECT_EQ(path({{"mode", "generic"}}), "generic");
  EXPECT_EQ(path({{"path", "3.1"}}), "3.1");
  EXPECT_EQ(path({{"mode", "fetched"}, {"retrieve_on", "abcdef"}}), "1.2");
}

TEST(CompletionsTest, StackedBanksAreChosenAndReportedByName) {
  Served served(1, true, {}, 1);
  const auto banks = [&](const json& memory) {
    return served.Ok("/v1/completions", {{"prompt", "12345678"}, {"max_tokens", 1}, {"memory", memory}})["memory"]["banks"];
  };
  const json both = banks({{"mode", "fetched"}});
  ASSERT_EQ(both.size(), 2u);
  EXPECT_EQ(both[0], (json{{"mode", "fetched"}, {"path", "2.0"}, {"blocks", {"1/2", "2/8"}}, {"distances", {0.25, 0.125}}, {"bank", "fake-bank"},
                           {"bank_version", "v7"}, {"left_out", nullptr}}));
  EXPECT_EQ(both[1], (json{{"mode", "fetched"}, {"path", "0"}, {"blocks", {"1/0"}}, {"distances", {0.5}}, {"bank", "private"}, {"bank_version", "p1"},
                           {"left_out", nullptr}}));
  EXPECT_EQ(banks({{"banks", {"fake-bank"}}})[1]["left_out"], "not_asked_for");
  EXPECT_EQ(banks({{"banks", "private"}})[0]["left_out"], "not_asked_for");
  const json given = banks({{"paths", {{"private", "1"}}}});
  EXPECT_EQ(given[0]["path"], "none");
  EXPECT_EQ(given[1]["path"], "1");
  EXPECT_EQ(given[1]["distances"], nullptr);
  served.fake().may_read_private = false;
  const json refused = banks({{"mode", "fetched"}});
  EXPECT_EQ(refused[1]["left_out"], "no_rights");
  EXPECT_EQ(refused[1]["blocks"], json::array());
  EXPECT_EQ(refused[0], both[0]);
  const auto models = HttpTestClient(served.http->address()).Call("GET", "/v1/models", "");
  EXPECT_EQ(json::parse(models.body)["data"][0]["memory"]["stacked"][0],
            (json{{"bank", "private"}, {"bank_version", "p1"}, {"fan_out", 2}, {"depth", 1}}));
  EXPECT_THAT(served.Error(400, "/v1/completions", R"({"prompt":"a","memory":{"banks":["secret"]}})")["message"].get<std::string>(),
              HasSubstr("the banks served here are: fake-bank, private"));
}

TEST(CompletionsTest, ManyPromptsInOneRequest) {
  Served served;
  const json reply = served.Ok("/v1/completions", {{"prompt", {"a", "bb", "ccc"}}, {"max_tokens", 1}});
  ASSERT_EQ(reply["choices"].size(), 3u);
  for (int i = 0; i < 3; ++i) EXPECT_EQ(reply["choices"][i]["index"], i);
  EXPECT_EQ(reply["choices"][2]["memory"]["path"], "0.3");
  EXPECT_EQ(reply["usage"]["prompt_tokens"], 6);
  EXPECT_EQ(served.Ok("/v1/completions", {{"prompt", {72, 105}}})["usage"]["prompt_tokens"], 2);
  EXPECT_EQ(served.Ok("/v1/completions", {{"prompt", {{72, 105}, {72}}}})["choices"].size(), 2u);
}

// What lm-evaluation-harness sends for log-likelihoods.
TEST(CompletionsTest, EchoWithLogprobsAndNoNewTokens) {
  Served served;
  const json reply = served.Ok("/v1/completions", {{"prompt", {{65, 195, 169, 66}}}, {"max_tokens", 0}, {"echo", true}, {"logprobs", 1}, {"temperature", 0}});
  const json& choice = reply["choices"][0];
  EXPECT_EQ(choice["text"], "A\xC3\xA9" "B");
  const json& logprobs = choice["logprobs"];
  EXPECT_EQ(logprobs["tokens"], (json{"A", "bytes:\\xc3", "bytes:\\xa9", "B"}));
  EXPECT_EQ(logprobs["token_logprobs"], (json{nullptr, -0.5, -0.5, -0.5}));
  EXPECT_EQ(logprobs["top_logprobs"][0], nullptr);
  EXPECT_EQ(logprobs["top_logprobs"][3], (json{{"B", -0.5}}));
  EXPECT_EQ(logprobs["text_offset"], (json{0, 1, 2, 2}));
  EXPECT_EQ(logprobs["token_ids"], (json{65, 195, 169, 66}));
}

TEST(CompletionsTest, StreamsEvents) {
  Served served;
  const auto reply = served.Post("/v1/completions", R"({"prompt":"ab","max_tokens":3,"stream":true,"stream_options":{"include_usage":true}})");
  EXPECT_EQ(reply.status, 200);
  EXPECT_EQ(HttpTestClient::Header(reply.headers, "Content-Type"), "text/event-stream");
  const std::vector<std::string> events = SseEvents(reply.body);
  ASSERT_GE(events.size(), 5u);
  EXPECT_EQ(events.back(), "[DONE]");
  std::string text;
  for (size_t i = 0; i + 2 < events.size(); ++i) text += json::parse(events[i])["choices"][0]["text"].get<std::string>();
  EXPECT_EQ(text, " one two three");
  EXPECT_EQ(json::parse(events[0])["memory"]["path"], "0.2");
  EXPECT_EQ(json::parse(events[events.size() - 3])["choices"][0]["finish_reason"], "length");
  EXPECT_EQ(json::parse(events[events.size() - 2])["usage"]["total_tokens"], 5);
}

TEST(CompletionsTest, AStreamThatBreaksEndsWithAnErrorEvent) {
  Served served;
  served.fake().fail_after_tokens = 1;
  const auto reply = served.Post("/v1/completions", R"({"prompt":"ab","max_tokens":3,"stream":true})");
  const std::vector<std::string> events = SseEvents(reply.body);
  EXPECT_EQ(reply.status, 200);
  EXPECT_EQ(json::parse(events.back())["error"]["code"], "UNAVAILABLE");
}

TEST(ChatTest, RendersChatMlAndResolvesByTheQuestion) {
  Served served;
  const json reply = served.Ok("/v1/chat/completions",
                               {{"messages", {{{"role", "user"}, {"content", "hi"}}, {{"role", "assistant"}, {"content", "yes"}},
                                              {{"role", "user"}, {"content", {{{"type", "text"}, {"text", "what?"}}}}}}},
                                {"max_tokens", 2}, {"logprobs", true}, {"top_logprobs", 2}});
  EXPECT_EQ(reply["object"], "chat.completion");
  EXPECT_EQ(reply["choices"][0]["message"], (json{{"role", "assistant"}, {"content", " one two"}}));
  EXPECT_EQ(reply["choices"][0]["logprobs"]["content"][1]["token"], " two");
  EXPECT_EQ(reply["choices"][0]["logprobs"]["content"][1]["top_logprobs"].size(), 2u);
  EXPECT_EQ(reply["memory"]["path"], "1.1");
  EXPECT_THAT(served.paths.texts(), testing::ElementsAre("what?"));
  const v1::GenerateRequest request = served.fake().last_request();
  EXPECT_EQ(request.prompt().text(),
            "<|im_start|>system\nBe helpful.<|im_end|>\n"
            "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\nyes<|im_end|>\n<|im_start|>user\nwhat?<|im_end|>\n<|im_start|>assistant\n");
  EXPECT_TRUE(request.prompt().parse_special());
  EXPECT_EQ(request.sampling().stop_tokens(0), FakeWorker::kChatEndToken);
}

TEST(ChatTest, StreamsDeltas) {
  Served served;
  const auto reply = served.Post("/v1/chat/completions", R"({"messages":[{"role":"user","content":"hi"}],"max_completion_tokens":2,"stream":true})");
  const std::vector<std::string> events = SseEvents(reply.body);
  EXPECT_EQ(json::parse(events[0])["choices"][0]["delta"]["role"], "assistant");
  EXPECT_EQ(json::parse(events[0])["object"], "chat.completion.chunk");
  EXPECT_EQ(json::parse(events[1])["choices"][0]["delta"]["content"], " one");
  EXPECT_EQ(events.back(), "[DONE]");
}

TEST(ChatTest, WorksWithoutATree) {
  Served served(1, false);
  EXPECT_EQ(served.Ok("/v1/chat/completions", {{"messages", {{{"role", "user"}, {"content", "hi"}}}}})["memory"]["mode"], "none");
}

TEST(ChatTest, ControlTokensInAMessageAreRefused) {
  Served served;
  const json error = served.Error(400, "/v1/chat/completions", R"({"messages":[{"role":"user","content":"x<|im_end|>y"}]})");
  EXPECT_EQ(error["param"], "messages[0].content");
}

TEST(ChatTest, AnUnknownTemplateIsNamed) {
  Served served;
  served.fake().knows_chat = false;
  const std::string body = R"({"messages":[{"role":"user","content":"x"}],"max_tokens":1})";
  while (served.Post("/v1/chat/completions", body).status == 200) std::this_thread::sleep_for(std::chrono::milliseconds(10));   // until it is polled
  const json error = served.Error(501, "/v1/chat/completions", body);
  EXPECT_THAT(error["message"].get<std::string>(), testing::HasSubstr("'fake-model' is none of chatml, llama3"));
}

struct BadRequest {
  std::string path, body, param, message;
};

TEST(ErrorsTest, WrongTypesAndRangesNameTheField) {
  Served served;
  const std::vector<BadRequest> cases = {
      {"/v1/completions", R"({"prompt":5})", "prompt", "prompt is a number"},
      {"/v1/completions", R"({})", "prompt", "prompt is missing"},
      {"/v1/completions", R"({"prompt":[]})", "prompt", "empty list"},
      {"/v1/completions", R"({"prompt":["a",{}]})", "prompt", "holds a object"},
      {"/v1/completions", R"({"prompt":[1,-2]})", "prompt", "-2"},
      {"/v1/completions", R"({"prompt":"a","max_tokens":"many"})", "max_tokens", "max_tokens is a string"},
      {"/v1/completions", R"({"prompt":"a","max_tokens":-1})", "max_tokens", "max_tokens is -1"},
      {"/v1/completions", R"({"prompt":"a","max_tokens":1.5})", "max_tokens", "an integer from 0"},
      {"/v1/completions", R"({"prompt":"a","max_tokens":0})", "max_tokens", "without echo"},
      {"/v1/completions", R"({"prompt":"a","temperature":-1})", "temperature", "temperature is -1"},
      {"/v1/completions", R"({"prompt":"a","top_p":2})", "top_p", "a number from 0 to 1"},
      {"/v1/completions", R"({"prompt":"a","n":2})", "n", "an integer from 1 to 1"},
      {"/v1/completions", R"({"prompt":"a","stream":"yes"})", "stream", "true or false"},
      {"/v1/completions", R"({"prompt":"a","stop":[1]})", "stop", "stop holds a number"},
      {"/v1/completions", R"({"prompt":"a","suffix":"b"})", "suffix", "not supported"},
      {"/v1/completions", R"({"prompt":"a","memory":"none"})", "memory", "memory is a string"},
      {"/v1/completions", R"({"prompt":"a","memory":{"mode":"all"}})", "memory.mode", "none, generic or fetched"},
      {"/v1/completions", R"({"prompt":"a","memory":{"path":3}})", "memory.path", "memory.path is a number"},
      {"/v1/completions", R"({"prompt":"a","memory":{"banks":[3]}})", "memory.banks", "memory.banks holds a number"},
      {"/v1/completions", R"({"prompt":"a","memory":{"paths":"3"}})", "memory.paths", "memory.paths is a string"},
      {"/v1/completions", R"({"prompt":"a","memory":{"paths":{"b":3}}})", "memory.paths.b", "memory.paths.b is a number"},
      {"/v1/chat/completions", R"({"messages":"hi"})", "messages", "a list"},
      {"/v1/chat/completions", R"({"messages":[{"role":"robot","content":"x"}]})", "messages[0].role", "'robot'"},
      {"/v1/chat/completions", R"({"messages":[{"role":"user"}]})", "messages[0].content", "not a string"},
      {"/v1/embeddings", R"({"input":7})", "input", "input is a number"},
      {"/detokenize", R"({"tokens":"x"})", "tokens", "tokens is a string"},
  };
  for (const BadRequest& bad : cases) {
    const json error = served.Error(400, bad.path, bad.body);
    EXPECT_EQ(error["param"], bad.param) << bad.body;
    EXPECT_EQ(error["type"], "invalid_request_error");
    EXPECT_THAT(error["message"].get<std::string>(), HasSubstr(bad.message)) << bad.body;
  }
  EXPECT_EQ(served.fake().generate_calls, 0);
}

TEST(ErrorsTest, BodiesThatAreNoJsonObject) {
  Served served;
  EXPECT_THAT(served.Error(400, "/v1/completions", "{\"prompt\":")["message"].get<std::string>(), HasSubstr("not JSON"));
  EXPECT_THAT(served.Error(400, "/v1/completions", "[1]")["message"].get<std::string>(), HasSubstr("an object is expected"));
  EXPECT_THAT(served.Error(400, "/v1/completions", "{\"prompt\":\"\xff\"}")["message"].get<std::string>(), HasSubstr("UTF-8"));
}

TEST(ErrorsTest, UnknownFieldsAreIgnored) {
  Served served;
  served.Ok("/v1/completions", {{"prompt", "a"}, {"user", "me"}, {"something_new", {1, 2}}, {"stop", nullptr}});
}

TEST(ErrorsTest, TheRoutersErrorsGetTheirStatus) {
  Served served;
  EXPECT_EQ(served.Error(404, "/v1/nothing", "{}")["type"], "not_found_error");
  EXPECT_EQ(served.Error(400, "/v1/completions", R"({"prompt":"a","memory":{"path":"7.7"}})")["code"], "INVALID_ARGUMENT");
  served.fake().fail_generate = grpc::RESOURCE_EXHAUSTED;
  const auto busy = served.Post("/v1/completions", R"({"prompt":"a"})");
  EXPECT_EQ(busy.status, 429);
  EXPECT_EQ(HttpTestClient::Header(busy.headers, "Retry-After"), "1");
  EXPECT_EQ(served.Error(429, "/v1/completions", R"({"prompt":"a","stream":true})")["type"], "rate_limit_error");
}

TEST(OtherEndpointsTest, ModelsTokensAndEmbeddings) {
  Served served;
  const json models = json::parse(HttpTestClient(served.http->address()).Call("GET", "/v1/models").body);
  EXPECT_EQ(models["data"][0]["id"], "fake-model");
  EXPECT_EQ(models["data"][0]["memory"]["bank"], "fake-bank");
  EXPECT_EQ(served.Ok("/tokenize", {{"prompt", "Hi"}}), (json{{"tokens", {72, 105}}, {"count", 2}}));
  EXPECT_EQ(served.Ok("/detokenize", {{"tokens", {72, 105}}})["prompt"], "Hi");
  const json floats = served.Ok("/v1/embeddings", {{"input", {"abc", "d"}}});
  EXPECT_EQ(floats["data"][0]["embedding"], (json{3.0, 0.5}));
  EXPECT_EQ(floats["data"][1]["index"], 1);
  const json packed = served.Ok("/v1/embeddings", {{"input", "abc"}, {"encoding_format", "base64"}});
  std::string bytes;
  ASSERT_TRUE(absl::Base64Unescape(packed["data"][0]["embedding"].get<std::string>(), &bytes));
  float first = 0;
  memcpy(&first, bytes.data(), sizeof first);
  EXPECT_EQ(first, 3.0f);
}

TEST(DisconnectTest, AClientThatLeavesFreesTheWorker) {
  Served served;
  served.fake().token_delay_ms = 20;
  for (const char* stream : {"true", "false"}) {
    const int before = served.fake().cancelled;
    HttpTestClient client(served.http->address());
    client.SendRequest("POST", "/v1/completions", std::string(R"({"prompt":"a","max_tokens":100000,"stream":)") + stream + "}");
    if (stream[0] == 't') {
      ASSERT_TRUE(client.WaitForText("two"));
    } else {
      ASSERT_TRUE(RouterUnderTest::WaitFor([&] { return served.fake().running == 1; }));
    }
    client.Close();
    EXPECT_TRUE(RouterUnderTest::WaitFor([&] { return served.fake().cancelled == before + 1; }, 2000)) << stream;
    EXPECT_TRUE(RouterUnderTest::WaitFor([&] { return served.fake().running == 0; }));
  }
}

TEST(DisconnectTest, AlsoBeforeTheFirstToken) {
  Served served;
  served.fake().start_delay_ms = 30000;
  HttpTestClient client(served.http->address());
  client.SendRequest("POST", "/v1/completions", R"({"prompt":"a","stream":true})");
  ASSERT_TRUE(RouterUnderTest::WaitFor([&] { return served.fake().running == 1; }));
  client.Close();
  EXPECT_TRUE(RouterUnderTest::WaitFor([&] { return served.fake().cancelled == 1; }, 2000));
}

TEST(ConcurrencyTest, RequestsRunAtTheSameTime) {
  Served served;
  served.fake().token_delay_ms = 20;
  std::vector<std::thread> clients;
  std::atomic<int> good{0};
  for (int i = 0; i < 24; ++i) {
    clients.emplace_back([&, i] {
      const auto reply = served.Post("/v1/completions", json{{"prompt", std::string(i + 1, 'x')}, {"max_tokens", 5}, {"stream", i % 2 == 0}}.dump());
      good += reply.status == 200 && (i % 2 == 0 ? SseEvents(reply.body).back() == "[DONE]"
                                                 : json::parse(reply.body)["usage"]["prompt_tokens"] == i + 1);
    });
  }
  for (std::thread& client : clients) client.join();
  EXPECT_EQ(good, 24);
  EXPECT_GT(served.fake().most_running, 8);
}

TEST(ConcurrencyTest, ThePromptsOfOneRequestRunAtTheSameTime) {
  Served served;
  served.fake().token_delay_ms = 20;
  served.Ok("/v1/completions", {{"prompt", {"a", "b", "c", "d", "e", "f"}}, {"max_tokens", 5}});
  EXPECT_GE(served.fake().most_running, 4);
}

}  // namespace
}  // namespace membank
