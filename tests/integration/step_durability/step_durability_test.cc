// Durability class "step" with real processes (promise P2): two memory servers are killed with SIGKILL, together or one alone, at random moments
// while a trainer runs. Integer gradients with SGD and rate 1: a block's value is the count of the steps that touched it. After every restart
// the servers have every acknowledged step, and none twice.
#include <gtest/gtest.h>

#include <map>
#include <random>

#include "absl/synchronization/notification.h"
#include "common/bank/block_layout.h"
#include "common/client/memory_client.h"
#include "fmt/format.h"
#include "tests/testing/memory_process.h"

namespace membank {
namespace {

using testing_support::ServerProcess;

constexpr int kKills = 8;
constexpr std::chrono::milliseconds kTimeout(800);

BankSpec Spec() {
  BankSpec spec;
  spec.bank_id = "steps";
  spec.fan_out = 4;
  spec.widths = {16, 8};
  spec.layers = 2;
  spec.hidden = 32;
  spec.dtype = DType::kF32;
  spec.anchor_fingerprint = spec.tree_fingerprint = "none";
  return spec;
}

class StepDurabilityTest : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string name = ::testing::TempDir() + "/membank-steps-XXXXXX";
    root_ = mkdtemp(name.data());
    const auto map = *SlotMap::Striped({{"m0", "127.0.0.1:0"}, {"m1", "127.0.0.1:0"}});
    ASSERT_TRUE(WriteFileAtomic(root_ + "/spec.json", Spec().ToJson()).ok());
    ASSERT_TRUE(WriteFileAtomic(root_ + "/server-slots.json", map.ToJson()).ok());
    for (const char* id : {"m0", "m1"}) servers_.push_back(std::make_unique<ServerProcess>(id, root_, std::vector<std::string>{"--durability", "step"}));
    for (auto& server : servers_) ASSERT_TRUE(server->Start().ok());
  }
  void TearDown() override {
    servers_.clear();
    std::filesystem::remove_all(root_);
  }

  std::unique_ptr<MemoryClient> Connect() {
    MemoryClientOptions options;
    options.servers = {servers_[0]->address(), servers_[1]->address()};
    options.call_timeout = kTimeout;  // a call waits so long for a dead server to come back
    auto client = MemoryClient::Connect(options);
    EXPECT_TRUE(client.ok()) << client.status();
    return client.ok() ? *std::move(client) : nullptr;
  }

  // Step s touches these blocks, each with gradient -1: the block's last row of W3 counts.
  static std::vector<BlockId> TouchedBy(uint64_t step) {
    std::vector<BlockId> blocks;
    for (uint32_t cluster = 0; cluster < 4; ++cluster) blocks.push_back({1, cluster});
    for (uint32_t cluster = 0; cluster < 16; ++cluster)
      if ((step * 7 + cluster) % 5 == 0) blocks.push_back({2, cluster});
    return blocks;
  }

  absl::Status Step(MemoryClient& client, uint64_t epoch, uint64_t step) {
    std::vector<BlockGradient> gradients;
    for (const BlockId id : TouchedBy(step))
      gradients.push_back({id, DType::kF32, absl::MakeConstSpan(reinterpret_cast<const uint8_t*>(minus_one_.data()), Spec().BlockBytes(id.level))});
    RETURN_IF_ERROR(client.Push({"run", epoch, step}, 0, gradients));
    RETURN_IF_ERROR(client.PrepareStep({"run", epoch, step}, kTimeout).status());
    return client.ApplyStep({"run", epoch, step}, {1.0f, 1.0f, 0.0f});
  }

  // Every block's count of the steps 1 to `head`.
  void ExpectCounts(MemoryClient& client, uint64_t head) {
    std::map<BlockId, float> expected;
    for (uint64_t step = 1; step <= head; ++step)
      for (const BlockId id : TouchedBy(step)) ++expected[id];
    for (const auto& [id, count] : expected) {
      std::vector<float> values(Spec().BlockElements(id.level));
      BlockFetch fetch{id, absl::MakeSpan(reinterpret_cast<uint8_t*>(values.data()), values.size() * sizeof(float))};
      const absl::Status fetched = client.Fetch(absl::MakeSpan(&fetch, 1), {});
      ASSERT_TRUE(fetched.ok()) << fetched;
      ASSERT_EQ(values[FfnLayer(Spec(), id.level, 0).down], count) << "block " << ToString(id) << " at head " << head;
    }
  }

  // Kills one server or both after `delay` while steps run; the last acknowledged step.
  uint64_t TrainUntilKilled(MemoryClient& client, uint64_t epoch, uint64_t head, absl::Duration delay, int victims) {
    absl::Notification killed;
    std::thread killer([&] {
      absl::SleepFor(delay);
      for (size_t i = 0; i < servers_.size(); ++i)
        if (victims & (1 << i)) servers_[i]->Signal(SIGKILL);
      killed.Notify();
    });
    uint64_t acknowledged = head;
    while (true) {
      const uint64_t step = acknowledged + 1;
      const absl::Status status = killed.HasBeenNotified() ? absl::UnavailableError("killed") : Step(client, epoch, step);
      if (!status.ok()) break;
      acknowledged = step;
      if (acknowledged == head + 3 && checkpoint_) {
        const std::string id = fmt::format("c{}", acknowledged);
        if (!client.PrepareCheckpoint(id, acknowledged).ok() || !client.CommitCheckpoint(id).ok()) break;
      }
    }
    killer.join();
    return acknowledged;
  }

  std::string root_;
  std::vector<std::unique_ptr<ServerProcess>> servers_;
  const std::vector<float> minus_one_ = std::vector<float>(Spec().BlockElements(1), -1.0f);
  bool checkpoint_ = false;
};

TEST_F(StepDurabilityTest, NoAcknowledgedStepIsLostAndNoneCountsTwice) {
  const uint32_t seed = std::random_device()();
  SCOPED_TRACE(fmt::format("seed {}", seed));
  std::mt19937 random(seed);
  uint64_t head = 0, struck = 0, uneven = 0;
  for (int kill = 1; kill <= kKills; ++kill) {
    const std::unique_ptr<MemoryClient> client = Connect();
    ASSERT_NE(client, nullptr);
    RunSettings run;
    run.run_id = "run";
    run.epoch = static_cast<uint64_t>(kill);
    run.first_step = head + 1;
    run.optimizer = OptimizerKind::kSgd;
    const absl::Status begun = client->BeginRun(run);
    ASSERT_TRUE(begun.ok()) << begun;
    checkpoint_ = random() % 2 == 0;
    const absl::Duration delay = absl::Microseconds(2000 + random() % 120000);
    const uint64_t acknowledged = TrainUntilKilled(*client, run.epoch, head, delay, 1 + static_cast<int>(random() % 3));
    for (auto& server : servers_) server->Signal(SIGKILL);
    for (auto& server : servers_) ASSERT_TRUE(server->Start().ok());
    const std::unique_ptr<MemoryClient> after = Connect();
    ASSERT_NE(after, nullptr);
    const auto status = after->GetStatus();
    ASSERT_TRUE(status.ok()) << status.status();
    EXPECT_TRUE(status->durable_steps);
    ASSERT_GE(status->head_step, acknowledged) << "an acknowledged step is gone";
    ASSERT_LE(status->head_step, acknowledged + 1);
    struck += status->head_step > head;
    uneven += status->head_step > acknowledged;
    const absl::Status rewound = after->Rewind(status->head_step);  // one server may be a step ahead of the other
    ASSERT_TRUE(rewound.ok()) << rewound;
    head = status->head_step;
    ASSERT_NO_FATAL_FAILURE(ExpectCounts(*after, head));
  }
  fmt::print("seed {}: {} kills, {} of them after at least one step, {} in the middle of one that survived; {} steps acknowledged and counted once\n", seed,
             kKills, struck, uneven, head);
  EXPECT_GT(struck, 0u);
}

}  // namespace
}  // namespace membank
