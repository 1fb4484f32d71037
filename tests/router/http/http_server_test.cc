// The HTTP server's own limits, with a route that echoes.
#include "router/http/http_server.h"

#include <atomic>
#include <thread>

#include "gmock/gmock.h"
#include "tests/router/http_client.h"

namespace membank {
namespace {

using ::testing::HasSubstr;

struct Served {
  explicit Served(HttpServerOptions options = {}) {
    const auto echo = [](const HttpRequest& request) {
      HttpResponse response;
      response.body = request.body;
      return response;
    };
    const auto wait = [this](const HttpRequest& request) {
      std::atomic<bool> gone{false};
      const auto watch = request.when_gone([&] { gone = true; });
      ++waiting;
      while (!release && !gone) std::this_thread::sleep_for(std::chrono::milliseconds(2));
      left += gone;
      return HttpResponse();
    };
    const auto fail = [](const HttpRequest&) -> HttpResponse { throw std::runtime_error("inner secret"); };
    server = HttpServer::Start(options, {{"POST", "/echo", echo}, {"GET", "/wait", wait}, {"GET", "/fail", fail}}).value();
  }
  HttpTestClient Client() { return HttpTestClient(server->address()); }

  std::atomic<bool> release{false};
  std::atomic<int> waiting{0}, left{0};
  std::unique_ptr<HttpServer> server;
};

TEST(HttpServerTest, KeepsTheConnectionForManyRequests) {
  Served served;
  HttpTestClient client(served.server->address());
  for (int i = 0; i < 200; ++i) EXPECT_EQ(client.Call("POST", "/echo", std::to_string(i)).body, std::to_string(i));
}

TEST(HttpServerTest, LargeBodiesArriveWhole) {
  Served served;
  const std::string body(3 << 20, 'x');
  EXPECT_EQ(HttpTestClient(served.server->address()).Call("POST", "/echo", body).body, body);
}

TEST(HttpServerTest, UnknownPathsAndMethods) {
  Served served;
  EXPECT_EQ(served.Client().Call("GET", "/nowhere").status, 404);
  const auto reply = served.Client().Call("GET", "/echo");
  EXPECT_EQ(reply.status, 405);
  EXPECT_EQ(HttpTestClient::Header(reply.headers, "Allow"), "POST");
}

TEST(HttpServerTest, AnExceptionIsA500WithoutItsText) {
  Served served;
  const auto reply = served.Client().Call("GET", "/fail");
  EXPECT_EQ(reply.status, 500);
  EXPECT_THAT(reply.body, testing::Not(HasSubstr("secret")));
  EXPECT_THAT(reply.headers, testing::Not(HasSubstr("secret")));
}

TEST(HttpServerTest, TooLargeABodyIsRefusedBeforeItIsRead) {
  HttpServerOptions options;
  options.max_body_bytes = 1000;
  Served served(options);
  HttpTestClient client(served.server->address());
  client.Send("POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000000\r\n\r\n");
  const auto reply = client.Receive();
  EXPECT_EQ(reply.status, 413);
  EXPECT_THAT(reply.body, HasSubstr("at most 1000"));
  EXPECT_EQ(HttpTestClient::Header(reply.headers, "Connection"), "close");
}

TEST(HttpServerTest, BodiesOfUnknownLengthAreRefused) {
  Served served;
  HttpTestClient client(served.server->address());
  client.Send("POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n");
  EXPECT_EQ(client.Receive().status, 411);
  HttpTestClient bad(served.server->address());
  bad.Send("POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\n");
  EXPECT_EQ(bad.Receive().status, 400);
}

TEST(HttpServerTest, HeadersAreBounded) {
  Served served;
  HttpTestClient client(served.server->address());
  client.Send("POST /echo HTTP/1.1\r\nHost: x\r\n");
  for (int i = 0; i < 100 && client.Send("X-Filler-" + std::to_string(i) + ": " + std::string(1000, 'y') + "\r\n"); ++i) {
  }
  client.Send("Content-Length: 0\r\n\r\n");
  EXPECT_NE(client.Receive().status, 200);
}

TEST(HttpServerTest, ASlowRequestLosesItsThread) {
  HttpServerOptions options;
  options.threads = 1;
  options.receive_timeout = std::chrono::milliseconds(300);
  Served served(options);
  HttpTestClient slow(served.server->address());
  slow.Send("POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nab");
  EXPECT_EQ(served.Client().Call("POST", "/echo", "quick").body, "quick");  // after the slow one was given up
  EXPECT_EQ(slow.Receive().status, 408);
}

TEST(HttpServerTest, IdleConnectionsDoNotBlockOthers) {
  HttpServerOptions options;
  options.threads = 1;
  Served served(options);
  HttpTestClient idle(served.server->address());
  EXPECT_EQ(idle.Call("POST", "/echo", "a").status, 200);
  EXPECT_EQ(served.Client().Call("POST", "/echo", "b").status, 200);
}

TEST(HttpServerTest, TooManyConnectionsGet503) {
  HttpServerOptions options;
  options.threads = 2;
  options.queue = 2;
  Served served(options);
  std::vector<std::unique_ptr<HttpTestClient>> busy;
  for (int i = 0; i < 4; ++i) {
    busy.push_back(std::make_unique<HttpTestClient>(served.server->address()));
    busy.back()->SendRequest("GET", "/wait", "");
    for (int w = 0; i < 2 && w < 1000 && served.waiting <= i; ++w) std::this_thread::sleep_for(std::chrono::milliseconds(2));
  }
  std::this_thread::sleep_for(std::chrono::milliseconds(50));
  const auto refused = served.Client().Receive();
  EXPECT_EQ(refused.status, 503);
  EXPECT_EQ(HttpTestClient::Header(refused.headers, "Retry-After"), "1");
  served.release = true;
  for (auto& client : busy) EXPECT_EQ(client->Receive().status, 200);
}

TEST(HttpServerTest, ShutdownWaitsThenAborts) {
  auto served = std::make_unique<Served>();
  HttpTestClient client(served->server->address());
  client.SendRequest("GET", "/wait", "");
  while (served->waiting == 0) std::this_thread::sleep_for(std::chrono::milliseconds(2));
  std::thread later([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(100));
    served->release = true;
  });
  served->server->Shutdown(std::chrono::seconds(10));
  later.join();
  EXPECT_EQ(served->left, 0);
  EXPECT_EQ(client.Receive().status, 200);

  Served other;
  HttpTestClient stuck(other.server->address());
  stuck.SendRequest("GET", "/wait", "");
  while (other.waiting == 0) std::this_thread::sleep_for(std::chrono::milliseconds(2));
  other.server->Shutdown(std::chrono::milliseconds(50));
  EXPECT_EQ(other.left, 1);
}

TEST(HttpServerTest, AddressesAreChecked) {
  HttpServerOptions options;
  options.listen = "nonsense";
  EXPECT_EQ(HttpServer::Start(options, {}).status().code(), absl::StatusCode::kInvalidArgument);
  Served served;
  options.listen = served.server->address();
  const absl::Status taken = HttpServer::Start(options, {}).status();
  EXPECT_EQ(taken.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(taken.message()), HasSubstr(options.listen));
}

}  // namespace
}  // namespace membank
