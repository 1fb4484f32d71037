#include "common/rpc/service_options.h"

#include "CLI/CLI.hpp"
#include "gtest/gtest.h"

namespace membank {
namespace {

std::string Refusal(const ServiceOptions& options) {
  const absl::Status status = Validate(options);
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
  return std::string(status.message());
}

TEST(ServiceOptionsTest, CertificateAndKeyGoTogetherAndAuthorityNeedsThem) {
  ServiceOptions options = {.listen = "127.0.0.1:1"};
  EXPECT_TRUE(Validate(options).ok());
  options.tls = {"c.pem", "k.pem", "a.pem"};
  EXPECT_TRUE(Validate(options).ok());
  options.tls = {"c.pem", "", ""};
  EXPECT_NE(Refusal(options).find("--tls-certificate is 'c.pem' and --tls-key is ''"), std::string::npos);
  options.tls = {"", "k.pem", ""};
  EXPECT_NE(Refusal(options).find("--tls-key is 'k.pem'"), std::string::npos);
  options.tls = {"", "", "a.pem"};
  EXPECT_NE(Refusal(options).find("--tls-authority a.pem without --tls-certificate"), std::string::npos);
  options = {};
  EXPECT_NE(Refusal(options).find("--listen is empty"), std::string::npos);
}

TEST(ServiceOptionsTest, KeepsTheServicesOwnDefaultsAndRefusesValuesOutOfRange) {
  ServiceOptions options = {.listen = "127.0.0.1:7", .memory_quota_bytes = 256ull << 20};
  const auto parse = [&](std::string line) {
    CLI::App app("test", "test");
    BindOptions(app, &options);
    app.parse(line, false);
  };
  parse("--drain-timeout-ms 5 --tls-key k");
  EXPECT_EQ(options.listen, "127.0.0.1:7");
  EXPECT_EQ(options.memory_quota_bytes, 256ull << 20);
  EXPECT_EQ(options.drain_timeout_ms, 5u);
  EXPECT_EQ(options.tls.key, "k");
  EXPECT_THROW(parse("--memory-quota-bytes 1"), CLI::ValidationError);
  EXPECT_THROW(parse("--log-level loud"), CLI::ValidationError);
}

}  // namespace
}  // namespace membank
