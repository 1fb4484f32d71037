// Two real memory server processes, killed with SIGKILL and started again on their data (promises P1 and P2): the head is the last committed
// checkpoint, on all servers, and integer gradients count exactly once in the history that survives.
#include <signal.h>
#include <sys/wait.h>

#include <filesystem>
#include <thread>

#include "common/bank/block_layout.h"
#include "common/base/file.h"
#include "common/base/status_macros.h"
#include "common/client/memory_client.h"
#include "fmt/format.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/testing/memory_process.h"
#include "tests/testing/status_check.h"
#include "tests/testing/tiny_spec.h"

namespace membank {
namespace {

using ::testing::HasSubstr;
using testing_support::ServerProcess;

using testing_support::TinySpec;

class MemoryProcessTest : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string name = ::testing::TempDir() + "/membank-process-XXXXXX";
    root_ = mkdtemp(name.data());
    ASSERT_OK(WriteFileAtomic(root_ + "/spec.json", TinySpec().ToJson()));
    const auto map = SlotMap::Striped({{"m0", "127.0.0.1:0"}, {"m1", "127.0.0.1:0"}});
    ASSERT_OK(map.status());
    ASSERT_OK(WriteFileAtomic(root_ + "/server-slots.json", map->ToJson()));
    for (const char* id : {"m0", "m1"}) {
      servers_.push_back(std::make_unique<ServerProcess>(id, root_));
      ASSERT_OK(servers_.back()->Start());
    }
    const auto found = SlotMap::Striped({{"m0", servers_[0]->address()}, {"m1", servers_[1]->address()}});
    ASSERT_OK(WriteFileAtomic(root_ + "/slots.json", found->ToJson()));
    MemoryClientOptions options;
    options.slot_map_path = root_ + "/slots.json";
    auto client = MemoryClient::Connect(options);
    ASSERT_OK(client.status());
    client_ = *std::move(client);
  }

  void TearDown() override {
    client_.reset();
    servers_.clear();
    std::filesystem::remove_all(root_);
  }

  void KillAll() {
    for (auto& server : servers_) server->Signal(SIGKILL);
  }
  void RestartAll() {
    for (auto& server : servers_) ASSERT_OK(server->Start());
  }

  absl::Status Begin(uint64_t epoch, uint64_t first_step) {
    RunSettings run;
    run.run_id = "run";
    run.epoch = epoch;
    run.first_step = first_step;
    run.optimizer = OptimizerKind::kSgd;
    return client_->BeginRun(run);
  }

  // Block 1/c of both servers goes up by `step`.
  absl::Status Step(uint64_t epoch, uint64_t step) {
    const std::vector<float> values(TinySpec().BlockElements(1), -static_cast<float>(step));
    std::vector<BlockGradient> gradients;
    for (uint32_t cluster = 0; cluster < 4; ++cluster) {
      gradients.push_back({{1, cluster}, DType::kF32, absl::MakeConstSpan(reinterpret_cast<const uint8_t*>(values.data()), values.size() * 4)});
    }
    RETURN_IF_ERROR(client_->Push({"run", epoch, step}, 0, gradients));
    RETURN_IF_ERROR(client_->PrepareStep({"run", epoch, step}, std::chrono::seconds(20)).status());
    return client_->ApplyStep({"run", epoch, step}, {1.0f, 1.0f, 0.0f});
  }

  // The count of every block of level 1, which must be equal in all of them.
  float Count() {
    std::vector<std::vector<float>> values(4, std::vector<float>(TinySpec().BlockElements(1)));
    std::vector<BlockFetch> blocks;
    for (uint32_t cluster = 0; cluster < 4; ++cluster) {
      blocks.push_back({{1, cluster}, absl::MakeSpan(reinterpret_cast<uint8_t*>(values[cluster].data()), values[cluster].size() * 4)});
    }
    const absl::Status status = client_->Fetch(absl::MakeSpan(blocks), {});
    EXPECT_TRUE(status.ok()) << status;
    const uint64_t down = FfnLayer(TinySpec(), 1, 0).down;
    for (const auto& block : values) EXPECT_EQ(block[down], values[0][down]);
    return values[0][down];
  }

  std::string root_;
  std::vector<std::unique_ptr<ServerProcess>> servers_;
  std::unique_ptr<MemoryClient> client_;
};

TEST_F(MemoryProcessTest, AKillBetweenCheckpointsGoesBackToTheLastCommittedCut) {
  ASSERT_OK(Begin(1, 1));
  for (uint64_t step = 1; step <= 3; ++step) ASSERT_OK(Step(1, step));
  ASSERT_OK(client_->PrepareCheckpoint("c3", 3));
  ASSERT_OK(client_->CommitCheckpoint("c3"));
  for (uint64_t step = 4; step <= 5; ++step) ASSERT_OK(Step(1, step));
  EXPECT_EQ(Count(), 15);
  KillAll();
  RestartAll();
  auto status = client_->GetStatus();
  ASSERT_OK(status.status());
  EXPECT_EQ(status->head_step, 3u);
  EXPECT_EQ(Count(), 6);
  EXPECT_EQ(status->run_epoch, 1u);
  EXPECT_FALSE(Begin(1, 4).ok());  // the epoch was used; a new one fences whoever still runs in it
  ASSERT_OK(Begin(2, 4));
  EXPECT_FALSE(Step(1, 4).ok());
  for (uint64_t step = 4; step <= 6; ++step) ASSERT_OK(Step(2, step));
  EXPECT_EQ(Count(), 21);  // 1 + ... + 6: every step once in the history that survived
}

TEST_F(MemoryProcessTest, ACommitThatReachedOneServerOnlyCanBeFinished) {
  ASSERT_OK(Begin(1, 1));
  ASSERT_OK(Step(1, 1));
  ASSERT_OK(client_->PrepareCheckpoint("c1", 1));
  ASSERT_OK(client_->CommitCheckpoint("c1"));
  ASSERT_OK(Step(1, 2));
  ASSERT_OK(client_->PrepareCheckpoint("c2", 2));
  servers_[1]->Signal(SIGKILL);
  MemoryClientOptions half;
  half.servers = {servers_[0]->address()};
  auto first = MemoryClient::Connect(half);
  ASSERT_OK(first.status());
  ASSERT_OK((*first)->CommitCheckpoint("c2"));
  servers_[0]->Signal(SIGKILL);
  RestartAll();
  EXPECT_EQ(client_->GetStatus()->head_step, 1u);  // m1 is at c1, m0 at c2
  const auto list = client_->ListCheckpoints();
  ASSERT_OK(list.status());
  std::vector<std::string> ids;
  for (const CheckpointInfo& info : *list) ids.push_back(info.id + (info.committed ? " committed" : " prepared"));
  EXPECT_THAT(ids, ::testing::ElementsAre("c1 committed", "c2 prepared"));
  ASSERT_OK(client_->RestoreCheckpoint("c2"));
  EXPECT_EQ(client_->GetStatus()->head_step, 2u);
  EXPECT_EQ(Count(), 3);
  KillAll();
  RestartAll();
  EXPECT_EQ(client_->GetStatus()->head_step, 2u);
  EXPECT_EQ(Count(), 3);
}

TEST_F(MemoryProcessTest, AFetchOutlivesARestart) {
  servers_[1]->Signal(SIGKILL);
  std::thread restart([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(300));
    EXPECT_TRUE(servers_[1]->Start().ok());
  });
  EXPECT_EQ(Count(), 0);
  restart.join();
}

TEST_F(MemoryProcessTest, SigtermEndsWithCodeZeroAndBadStartsDoNot) {
  const int status = servers_[0]->Signal(SIGTERM);
  EXPECT_TRUE(WIFEXITED(status));
  EXPECT_EQ(WEXITSTATUS(status), 0);
  BankSpec other = TinySpec();
  other.seed = 99;
  ASSERT_OK(WriteFileAtomic(root_ + "/spec.json", other.ToJson()));
  EXPECT_FALSE(servers_[0]->Start().ok());  // the data directory holds another bank
  ASSERT_OK(WriteFileAtomic(root_ + "/spec.json", TinySpec().ToJson()));
  ASSERT_OK(servers_[0]->Start());
}

}  // namespace
}  // namespace membank
