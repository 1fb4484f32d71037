#include "model_worker/options.h"

#include "gtest/gtest.h"

namespace membank {
namespace {

WorkerOptions Good() {
  WorkerOptions options;
  options.anchor = "anchor";
  options.no_memory = true;
  return options;
}

TEST(WorkerOptionsTest, ChecksWhatOneRowCannot) {
  EXPECT_TRUE(Validate(Good()).ok());
  auto message = [](auto change) {
    WorkerOptions options = Good();
    change(options);
    const absl::Status status = Validate(options);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    return std::string(status.message());
  };
  EXPECT_NE(message([](auto& o) { o.anchor = ""; }).find("--anchor"), std::string::npos);
  EXPECT_NE(message([](auto& o) { o.no_memory = false; }).find("0 of --slot-map"), std::string::npos);
  EXPECT_NE(message([](auto& o) { o.slot_map = "map"; }).find("2 of --slot-map"), std::string::npos);
  EXPECT_NE(message([](auto& o) { o.service.tls.key = "key"; }).find("--tls-key is 'key'"), std::string::npos);
  EXPECT_NE(message([](auto& o) { o.bank_version = ""; }).find("--bank-version"), std::string::npos);
  EXPECT_NE(message([](auto& o) { o.stacked_bank_version = ""; }).find("--stacked-bank-version"), std::string::npos);
  EXPECT_NE(message([](auto& o) { o.stacked_slot_map = "map"; }).find("--no-memory"), std::string::npos);
  const auto two_places = [](auto& o) {
    o.stacked_slot_map = "map";
    o.stacked_memory_servers = {"m0"};
  };
  EXPECT_NE(message(two_places).find("both --stacked-slot-map and"), std::string::npos);
}

TEST(WorkerOptionsTest, ChoosesTheBankVersion) {
  EXPECT_EQ(ChooseBankVersion("--bank-version", "head", {}).value(), "");
  EXPECT_EQ(ChooseBankVersion("--bank-version", "latest", {"v9", "v10", "v2"}).value(), "v10");
  EXPECT_EQ(ChooseBankVersion("--bank-version", "latest", {"run-3", "run-03b", "run-12"}).value(), "run-12");
  EXPECT_EQ(ChooseBankVersion("--bank-version", "v2", {"v1", "v2"}).value(), "v2");
  EXPECT_EQ(ChooseBankVersion("--bank-version", "latest", {}).status().code(), absl::StatusCode::kFailedPrecondition);
  const absl::Status unknown = ChooseBankVersion("--bank-version", "v3", {"v1", "v2"}).status();
  EXPECT_EQ(unknown.code(), absl::StatusCode::kNotFound);
  EXPECT_NE(unknown.message().find("published: v1, v2"), std::string::npos) << unknown;
}

}  // namespace
}  // namespace membank
