// The server builder, TLS files and the admin port.
#include "common/rpc/server.h"

#include <thread>

#include "common/base/file.h"
#include "common/rpc/admin_server.h"
#include "common/rpc/channel.h"
#include "common/rpc/status.h"
#include "gmock/gmock.h"
#include "grpcpp/client_context.h"
#include "gtest/gtest.h"
#include "httplib.h"
#include "membank/v1/memory.grpc.pb.h"
#include "tests/testing/certificates.h"

namespace membank {
namespace {

using ::testing::HasSubstr;

// Answers a manifest after `delay`.
class SlowService final : public v1::MemoryService::Service {
 public:
  explicit SlowService(std::chrono::milliseconds delay = {}) : delay_(delay) {}
  grpc::Status GetManifest(grpc::ServerContext*, const v1::GetManifestRequest*, v1::Manifest* reply) override {
    std::this_thread::sleep_for(delay_);
    reply->set_wire_version(1);
    return grpc::Status::OK;
  }

 private:
  const std::chrono::milliseconds delay_;
};

grpc::Status Call(const std::string& address, const TlsFiles& tls = {}) {
  ChannelOptions options;
  options.tls = tls;
  auto channels = MakeChannels(address, options);
  EXPECT_TRUE(channels.ok()) << channels.status();
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(10));
  v1::Manifest reply;
  return v1::MemoryService::NewStub((*channels)[0])->GetManifest(&context, {}, &reply);
}

TEST(RpcServer, ReportsThePortItBound) {
  SlowService service;
  auto server = RpcServer::Start({}, {&service});
  ASSERT_TRUE(server.ok()) << server.status();
  EXPECT_GT((*server)->port(), 0);
  EXPECT_EQ((*server)->address(), "127.0.0.1:" + std::to_string((*server)->port()));
  EXPECT_TRUE(Call((*server)->address()).ok());
}

TEST(RpcServer, UnixSocketsWork) {
  SlowService service;
  RpcServerOptions options;
  options.listen = "unix:" + testing::TempDir() + "/membank-server-test-" + std::to_string(getpid());
  auto server = RpcServer::Start(options, {&service});
  ASSERT_TRUE(server.ok()) << server.status();
  EXPECT_TRUE(Call((*server)->address()).ok());
}

TEST(RpcServer, APortInUseIsNotShared) {
  SlowService service, other;
  auto first = RpcServer::Start({}, {&service});
  ASSERT_TRUE(first.ok());
  RpcServerOptions options;
  options.listen = (*first)->address();
  const auto second = RpcServer::Start(options, {&other});
  EXPECT_EQ(second.status().code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(second.status().message()), HasSubstr(options.listen));
}

TEST(RpcServer, ShutdownLetsARunningCallEnd) {
  SlowService service(std::chrono::milliseconds(400));
  auto server = RpcServer::Start({}, {&service});
  ASSERT_TRUE(server.ok());
  grpc::Status status;
  std::thread call([&] { status = Call((*server)->address()); });
  std::this_thread::sleep_for(std::chrono::milliseconds(150));
  (*server)->Shutdown(std::chrono::seconds(5));
  call.join();
  EXPECT_TRUE(status.ok()) << status.error_message();
}

TEST(Tls, ACallWithTheRightAuthorityWorksAndOthersDoNot) {
  testing_support::CertificateAuthority authority(testing::TempDir(), "membank-authority-" + std::to_string(getpid()));
  testing_support::CertificateAuthority other(testing::TempDir(), "membank-other-" + std::to_string(getpid()));
  const std::string stem = "membank-" + std::to_string(getpid());
  SlowService service;
  RpcServerOptions options;
  options.listen = "localhost:0";
  options.tls = authority.Issue(stem + "-server", {"DNS:localhost"});  // and clients must show a certificate
  auto server = RpcServer::Start(options, {&service});
  ASSERT_TRUE(server.ok()) << server.status();
  EXPECT_TRUE(Call((*server)->address(), authority.Issue(stem + "-client", {"DNS:client"})).ok());
  EXPECT_EQ(Call((*server)->address(), {"", "", authority.file()}).error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_EQ(Call((*server)->address(), other.Issue(stem + "-stranger", {"DNS:client"})).error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_EQ(Call((*server)->address()).error_code(), grpc::StatusCode::UNAVAILABLE);
}

TEST(AdminServer, TellsLifeReadinessAndMetrics) {
  auto admin = AdminServer::Start("127.0.0.1:0");
  ASSERT_TRUE(admin.ok()) << admin.status();
  httplib::Client client("http://" + (*admin)->address());
  EXPECT_EQ(client.Get("/livez")->status, 200);
  EXPECT_EQ(client.Get("/readyz")->status, 503);
  (*admin)->SetReady([] { return Readiness{absl::OkStatus(), "[+] worker a\n"}; });
  EXPECT_EQ(client.Get("/readyz")->status, 200);
  EXPECT_EQ(client.Get("/readyz")->body, "ok\n");
  EXPECT_EQ(client.Get("/readyz?verbose")->body, "ok\n[+] worker a\n");
  (*admin)->SetNotReady("draining");
  EXPECT_THAT(client.Get("/readyz")->body, HasSubstr("draining"));
  EXPECT_EQ(client.Get("/metrics")->status, 200);
  EXPECT_EQ(AdminServer::Start((*admin)->address()).status().code(), absl::StatusCode::kUnavailable);
  for (const char* bad : {"", "7191", "host:", "host:70000", "host:7x", ":80"}) {
    EXPECT_EQ(AdminServer::Start(bad).status().code(), absl::StatusCode::kInvalidArgument) << bad;
  }
}

}  // namespace
}  // namespace membank
