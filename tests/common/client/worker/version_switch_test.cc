// Changing the version of several workers, against services that say what they were told and may refuse.
#include "common/client/version_switch.h"

#include "absl/synchronization/mutex.h"
#include "common/rpc/server.h"
#include "gmock/gmock.h"
#include "membank/v1/worker.grpc.pb.h"

namespace membank {
namespace {

using ::testing::HasSubstr;

class VersionedWorker final : public v1::WorkerService::Service {
 public:
  grpc::Status GetStatus(grpc::ServerContext*, const v1::GetStatusRequest*, v1::WorkerStatus* reply) override {
    absl::MutexLock lock(&mu);
    reply->set_bank_version(after_use.empty() ? version : after_use);
    v1::StackedBank& stacked = *reply->add_stacked();
    stacked.mutable_bank()->set_bank_id("private");
    stacked.set_bank_version(private_version);
    return grpc::Status::OK;
  }
  grpc::Status UseBankVersion(grpc::ServerContext*, const v1::UseBankVersionRequest* request, v1::UseBankVersionReply* reply) override {
    absl::MutexLock lock(&mu);
    if (request->bank_version() == refused) return grpc::Status(grpc::StatusCode::NOT_FOUND, "there are: v1");
    if (!request->check_only() && request->bank_version() == fails) return grpc::Status(grpc::StatusCode::UNAVAILABLE, "m1 is away");
    std::string& changed = request->bank() == "private" ? private_version : version;
    reply->set_previous_version(changed);
    if (!request->check_only()) changed = request->bank_version();
    return grpc::Status::OK;
  }

  absl::Mutex mu;
  std::string version = "v1", private_version = "p1", refused = "none", fails = "none";
  std::string after_use;  // what somebody else changes it to
};

class VersionSwitchTest : public ::testing::Test {
 protected:
  void SetUp() override {
    for (int i = 0; i < 2; ++i) servers_[i] = RpcServer::Start({}, {&workers_[i]}).value();
    options_.workers = {servers_[0]->address(), servers_[1]->address()};
    options_.version = "v2";
    options_.timeout = std::chrono::seconds(10);
  }

  VersionSwitch Switch() {
    absl::StatusOr<VersionSwitch> result = SwitchBankVersion(options_);
    EXPECT_TRUE(result.ok()) << result.status();
    return result.ok() ? *std::move(result) : VersionSwitch();
  }

  VersionedWorker workers_[2];
  std::unique_ptr<RpcServer> servers_[2];
  VersionSwitchOptions options_;
};

TEST_F(VersionSwitchTest, ChangesAllForwardsAndBack) {
  for (const std::string version : {"v2", "v1", ""}) {
    const std::string before = workers_[0].version;
    options_.version = version;
    const VersionSwitch result = Switch();
    EXPECT_TRUE(result.status.ok()) << result.status;
    ASSERT_EQ(result.workers.size(), 2u);
    for (const WorkerVersion& worker : result.workers) {
      EXPECT_EQ(worker.before, before);
      EXPECT_EQ(worker.now, version);
    }
    EXPECT_EQ(workers_[1].version, version);
  }
}

TEST_F(VersionSwitchTest, AStackedBankIsChangedAlone) {
  options_.bank = "private";
  const VersionSwitch result = Switch();
  EXPECT_TRUE(result.status.ok()) << result.status;
  for (int i = 0; i < 2; ++i) {
    EXPECT_EQ(result.workers[i].before, "p1");
    EXPECT_EQ(result.workers[i].now, "v2");
    EXPECT_EQ(workers_[i].version, "v1");
    EXPECT_EQ(workers_[i].private_version, "v2");
  }
}

TEST_F(VersionSwitchTest, OneThatCannotKeepsAllAsTheyWere) {
  workers_[1].refused = "v2";
  const VersionSwitch result = Switch();
  EXPECT_THAT(std::string(result.status.message()),
              HasSubstr("worker " + options_.workers[1] + " cannot use v2: " + options_.workers[1] + ": there are: v1; no worker was changed"));
  EXPECT_EQ(result.workers[0].now, "v1");
  EXPECT_EQ(result.workers[1].now, "v1");
  EXPECT_EQ(workers_[0].version, "v1");
}

TEST_F(VersionSwitchTest, OneThatIsAwayIsNamed) {
  servers_[0]->Shutdown(std::chrono::milliseconds(0));
  const VersionSwitch result = Switch();
  EXPECT_EQ(result.status.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(result.status.message()), HasSubstr("worker " + options_.workers[0] + " cannot use v2"));
  EXPECT_EQ(result.workers[0].now, std::nullopt);
  EXPECT_EQ(result.workers[1].now, "v1");
}

TEST_F(VersionSwitchTest, OneThatFailsAfterAllCouldIsNamedAndTheOthersAreChanged) {
  workers_[0].fails = "v2";
  const VersionSwitch result = Switch();
  EXPECT_THAT(std::string(result.status.message()), HasSubstr("worker " + options_.workers[0] + " cannot use v2"));
  EXPECT_THAT(std::string(result.status.message()), HasSubstr("the others were changed"));
  EXPECT_EQ(result.workers[0].now, "v1");
  EXPECT_EQ(result.workers[1].now, "v2");
}

TEST_F(VersionSwitchTest, AnotherCommandAtTheSameTimeShows) {
  workers_[1].after_use = "v3";
  const VersionSwitch result = Switch();
  EXPECT_EQ(result.status.code(), absl::StatusCode::kAborted);
  EXPECT_THAT(std::string(result.status.message()), HasSubstr(options_.workers[1] + " cannot use v2: it uses v3 already"));
}

TEST_F(VersionSwitchTest, WorkersAreNamedOnce) {
  options_.workers.push_back(options_.workers[0]);
  EXPECT_EQ(SwitchBankVersion(options_).status().code(), absl::StatusCode::kInvalidArgument);
  options_.workers.clear();
  EXPECT_EQ(SwitchBankVersion(options_).status().code(), absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace membank
