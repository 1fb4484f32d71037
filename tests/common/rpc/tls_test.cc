// TLS files: what is refused when they are loaded, and rotation while calls run.
#include "common/rpc/tls.h"

#include <atomic>
#include <filesystem>
#include <thread>

#include "common/base/file.h"
#include "common/base/metrics.h"
#include "common/rpc/channel.h"
#include "common/rpc/server.h"
#include "common/rpc/tls_material.h"
#include "gmock/gmock.h"
#include "grpcpp/client_context.h"
#include "gtest/gtest.h"
#include "membank/v1/memory.grpc.pb.h"
#include "tests/testing/certificates.h"

namespace membank {
namespace {

using ::testing::HasSubstr;
using testing_support::CertificateAuthority;

class TlsTest : public testing::Test {
 protected:
  TlsTest() {
    std::string name = testing::TempDir() + "/membank-tls-XXXXXX";
    directory_ = mkdtemp(name.data());
  }
  ~TlsTest() override { std::filesystem::remove_all(directory_); }

  static void ExpectRefused(const TlsFiles& files, const std::string& file, const std::string& reason) {
    const auto material = LoadTlsMaterial(files);
    EXPECT_EQ(material.status().code(), absl::StatusCode::kInvalidArgument) << reason;
    EXPECT_THAT(std::string(material.status().message()), testing::AllOf(HasSubstr(file), HasSubstr(reason)));
  }

  std::string directory_;
};

TEST_F(TlsTest, FilesThatDoNotHoldTogetherAreRefused) {
  CertificateAuthority authority(directory_), other(directory_, "other");
  const TlsFiles good = authority.Issue("good", {"DNS:localhost"}), stranger = other.Issue("stranger", {"DNS:localhost"});
  ASSERT_TRUE(LoadTlsMaterial(good).ok()) << LoadTlsMaterial(good).status();
  EXPECT_NEAR(absl::ToDoubleSeconds(LoadTlsMaterial(good)->expires - absl::Now()), 3600, 60);

  TlsFiles files = good;
  files.key = stranger.key;
  ExpectRefused(files, stranger.key, "does not belong to the certificate in " + good.certificate);
  files = good;
  files.key = good.certificate;
  ExpectRefused(files, good.certificate, "no PEM private key");
  files = good;
  files.key = "";
  ExpectRefused(files, good.certificate, "certificate and key together");
  files = good;
  files.certificate = good.key;
  ExpectRefused(files, good.key, "no PEM certificate");
  ExpectRefused(authority.Issue("expired", {"DNS:localhost"}, -60), "expired.crt", "expired at");
  EXPECT_FALSE(LoadTlsMaterial(good, absl::Now() - absl::Hours(24)).ok()) << "not valid yet";

  const std::string chain = directory_ + "/chain.crt", pem = *ReadFile(good.certificate);
  files = good;
  files.certificate = chain;
  ASSERT_TRUE(WriteFileAtomic(chain, pem + *ReadFile(authority.file())).ok());
  EXPECT_TRUE(LoadTlsMaterial(files).ok());
  ASSERT_TRUE(WriteFileAtomic(chain, pem + *ReadFile(other.file())).ok());
  ExpectRefused(files, chain, "certificate 1 is not signed by certificate 2");
  ASSERT_TRUE(WriteFileAtomic(chain, pem + pem.substr(0, pem.size() / 2) + "\n-----END CERTIFICATE-----\n").ok());
  ExpectRefused(files, chain, "damaged");
  files = good;
  files.authority = good.key;
  ExpectRefused(files, good.key, "no PEM certificate");
}

class Service final : public v1::MemoryService::Service {
 public:
  grpc::Status GetManifest(grpc::ServerContext*, const v1::GetManifestRequest*, v1::Manifest*) override { return grpc::Status::OK; }
};

grpc::Status Call(grpc::Channel& channel) {
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(10));
  v1::Manifest reply;
  return v1::MemoryService::NewStub(std::shared_ptr<grpc::Channel>(&channel, [](grpc::Channel*) {}))->GetManifest(&context, {}, &reply);
}

std::shared_ptr<grpc::Channel> Connect(const std::string& address, const TlsFiles& tls) {
  ChannelOptions options;
  options.tls = tls;
  return MakeChannels(address, options).value()[0];
}

// A new authority every time; between the good files come torn, mismatched, missing, expired ones. Calls on an open connection never fail, new
// connections always get the last good files.
TEST_F(TlsTest, RotationUnderLoadKeepsTheLastGoodFiles) {
  const std::string live = directory_ + "/live";
  const TlsFiles files{live + ".crt", live + ".key", live + ".ca"};
  std::unique_ptr<CertificateAuthority> authority;
  TlsFiles issued;
  int generation = 0;
  const auto copy = [](const std::string& from, const std::string& to) { ASSERT_TRUE(WriteFileAtomic(to, *ReadFile(from)).ok()); };
  const auto rotate = [&] {
    authority = std::make_unique<CertificateAuthority>(directory_, "authority" + std::to_string(++generation));
    issued = authority->Issue("server" + std::to_string(generation), {"DNS:localhost"});
    copy(issued.certificate, files.certificate);  // for a moment the pair does not fit
    copy(issued.key, files.key);
    copy(issued.authority, files.authority);
  };
  rotate();
  Service service;
  RpcServerOptions options;
  options.listen = "localhost:0";
  options.tls = files;
  auto server = RpcServer::Start(options, {&service});
  ASSERT_TRUE(server.ok()) << server.status();
  const std::string address = (*server)->address();

  std::atomic<bool> stop{false};
  std::atomic<int> calls{0}, failed{0};
  const auto open = Connect(address, issued);
  ASSERT_TRUE(Call(*open).ok());
  std::thread load([&] {
    for (; !stop; ++calls) failed += Call(*open).ok() ? 0 : 1;
  });

  prometheus::Counter& failures = GetCounter("membank_tls_reload_failures_total", "");
  const double failures_before = failures.Value();
  int bad = 0;
  for (int round = 0; round < 40; ++round) {
    const TlsFiles previous = issued;
    rotate();
    EXPECT_TRUE(Call(*Connect(address, issued)).ok()) << "round " << round;
    EXPECT_FALSE(Call(*Connect(address, previous)).ok()) << "the old authority is not trusted any more, round " << round;
    const std::string pem = *ReadFile(files.certificate);
    switch (round % 5) {
      case 0: std::filesystem::resize_file(files.certificate, pem.size() / 2); break;
      case 1: copy(previous.key, files.key); break;
      case 2: std::filesystem::remove(files.key); break;
      case 3: std::filesystem::resize_file(files.authority, 0); break;
      case 4: {
        const TlsFiles expired = authority->Issue("expired", {"DNS:localhost"}, -60);
        copy(expired.certificate, files.certificate);
        copy(expired.key, files.key);
        break;
      }
    }
    for (int again = 0; again < 2; ++again, ++bad) EXPECT_TRUE(Call(*Connect(address, issued)).ok()) << "bad files, round " << round;
  }
  stop = true;
  load.join();
  EXPECT_EQ(failed, 0) << "of " << calls << " calls on the open connection";
  EXPECT_GT(calls, 40);
  EXPECT_GE(failures.Value() - failures_before, bad);
  std::printf("%d rotations, %d handshakes with bad files in place, %d calls meanwhile\n", generation, bad, calls.load());
}

// One channel from beginning to end: its connection goes with the server, the next one needs the new files.
TEST_F(TlsTest, ClientsTakeNewFilesOverAndKeepTheLastGoodOnes) {
  const auto copy = [](const std::string& from, const std::string& to) { ASSERT_TRUE(WriteFileAtomic(to, *ReadFile(from)).ok()); };
  const std::string live = directory_ + "/client";
  const TlsFiles files{live + ".crt", live + ".key", live + ".ca"};
  Service service;
  std::unique_ptr<RpcServer> server;
  RpcServerOptions options;
  options.listen = "localhost:0";
  std::shared_ptr<grpc::Channel> channel;
  const auto call_works = [&] {
    for (const absl::Time end = absl::Now() + absl::Seconds(20); absl::Now() < end; absl::SleepFor(absl::Milliseconds(50))) {
      if (Call(*channel).ok()) return true;
    }
    return false;
  };
  for (int generation = 0; generation < 2; ++generation) {
    CertificateAuthority authority(directory_, "client-authority" + std::to_string(generation));
    const TlsFiles client = authority.Issue("client" + std::to_string(generation), {"DNS:client.test"});
    server.reset();
    options.tls = authority.Issue("client-server" + std::to_string(generation), {"DNS:localhost"});
    server = RpcServer::Start(options, {&service}).value();
    options.listen = server->address();
    if (generation > 0) {
      EXPECT_FALSE(Call(*channel).ok()) << "the new server does not know the old authority";
    }
    copy(client.certificate, files.certificate);
    copy(client.key, files.key);
    copy(client.authority, files.authority);
    if (channel == nullptr) channel = Connect(server->address(), files);
    EXPECT_TRUE(call_works()) << "generation " << generation;
    // A key that does not fit: the next connection is made with what was good.
    copy(options.tls.key, files.key);
    absl::SleepFor(absl::Milliseconds(2500));  // long enough for both looks
    server.reset();
    server = RpcServer::Start(options, {&service}).value();
    EXPECT_TRUE(call_works()) << "with a bad file in place, generation " << generation;
  }
}

}  // namespace
}  // namespace membank
