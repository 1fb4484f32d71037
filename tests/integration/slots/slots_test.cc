// Slots move between real memory server processes while a trainer and readers work: every request succeeds, every gradient counts exactly once
// (integer gradients, SGD with rate 1: a block's value is the count), and after kill -9 of either server at any stage of a move each slot has
// exactly one owner and training goes on from one cut: the last checkpoint, or with durability class step the last step.
#include <fcntl.h>
#include <unistd.h>

#include <atomic>
#include <map>
#include <random>

#include "common/bank/block_init.h"
#include "common/bank/block_layout.h"
#include "common/bank/slot_map_source.h"
#include "common/client/memory_client.h"
#include "common/client/slot_transfer.h"
#include "common/rpc/status.h"
#include "common/rpc/wire.h"
#include "gmock/gmock.h"
#include "grpcpp/create_channel.h"
#include "gtest/gtest.h"
#include "membank/v1/memory.grpc.pb.h"
#include "tests/testing/memory_process.h"
#include "tests/testing/status_check.h"

namespace membank {
namespace {

using testing_support::ServerProcess;
using testing_support::Spawn;

constexpr uint32_t kClusters = 64;  // of level 2, which the trainer touches

BankSpec Spec() {
  BankSpec spec;
  spec.bank_id = "slots";
  spec.fan_out = 8;
  spec.widths = {16, 8};
  spec.layers = 2;
  spec.hidden = 32;
  spec.dtype = DType::kF32;
  spec.anchor_fingerprint = "aa";
  spec.tree_fingerprint = "bb";
  return spec;
}

class SlotsTest : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string name = ::testing::TempDir() + "/membank-slots-XXXXXX";
    root_ = mkdtemp(name.data());
    map_path_ = root_ + "/server-slots.json";
    ASSERT_OK(WriteFileAtomic(root_ + "/spec.json", Spec().ToJson()));
    // The addresses are known once the servers run; the map of epoch 1 lets them start.
    const auto first = SlotMap::Striped({{"m0", "127.0.0.1:0"}, {"m1", "127.0.0.1:0"}});
    ASSERT_OK(first.status());
    ASSERT_OK(WriteFileAtomic(map_path_, first->ToJson()));
    for (const char* id : {"m0", "m1", "m2"})
      servers_.push_back(std::make_unique<ServerProcess>(id, root_, std::vector<std::string>{"--durability", durability_}));
    for (auto& server : servers_) ASSERT_OK(server->Start());
    const auto second = SlotMap::Striped({Named("m0"), Named("m1")}, 2);
    ASSERT_OK(second.status());
    ASSERT_OK(WriteFileAtomic(map_path_, second->ToJson()));
    trainer_ = Connect();
    ASSERT_NE(trainer_, nullptr);
  }

  void TearDown() override {
    trainer_.reset();
    servers_.clear();
    std::filesystem::remove_all(root_);
  }

  ServerProcess& Server(const std::string& id) { return *servers_[id.back() - '0']; }
  SlotServer Named(const std::string& id) { return {id, Server(id).address()}; }

  std::unique_ptr<MemoryClient> Connect() {
    MemoryClientOptions options;
    options.slot_map_path = map_path_;
    auto client = MemoryClient::Connect(options);
    EXPECT_TRUE(client.ok()) << client.status();
    return client.ok() ? *std::move(client) : nullptr;
  }

  absl::Status Begin(uint64_t epoch, uint64_t first_step) {
    epoch_ = epoch;
    RunSettings run;
    run.run_id = "run";
    run.epoch = epoch;
    run.first_step = first_step;
    run.optimizer = OptimizerKind::kSgd;
    return trainer_->BeginRun(run);
  }

  // Every block of level 2 goes up by one.
  absl::Status Step(uint64_t step) {
    const std::vector<float> values(Spec().BlockElements(2), -1.0f);
    const auto bytes = absl::MakeConstSpan(reinterpret_cast<const uint8_t*>(values.data()), values.size() * 4);
    std::vector<BlockGradient> gradients;
    for (uint32_t cluster = 0; cluster < kClusters; ++cluster) gradients.push_back({{2, cluster}, DType::kF32, bytes});
    RETURN_IF_ERROR(trainer_->Push({"run", epoch_, step}, 0, gradients));
    RETURN_IF_ERROR(trainer_->PrepareStep({"run", epoch_, step}, std::chrono::seconds(30)).status());
    return trainer_->ApplyStep({"run", epoch_, step}, {1.0f, 1.0f, 0.0f});
  }

  absl::Status Checkpoint(uint64_t step) {
    const std::string id = fmt::format("c{}", step);
    RETURN_IF_ERROR(trainer_->PrepareCheckpoint(id, step));
    RETURN_IF_ERROR(trainer_->CommitCheckpoint(id));
    checkpoint_ = step;
    return absl::OkStatus();
  }

  // The counts of all blocks of level 2, by value: {7: 64} when every block has counted 7 steps.
  static std::map<float, int> Counts(MemoryClient* client, const FetchOptions& options = {}) {
    std::vector<std::vector<uint8_t>> payloads(kClusters, std::vector<uint8_t>(Spec().BlockBytes(2)));
    std::vector<BlockFetch> blocks;
    for (uint32_t cluster = 0; cluster < kClusters; ++cluster) blocks.push_back({{2, cluster}, absl::MakeSpan(payloads[cluster])});
    const absl::Status status = client->Fetch(absl::MakeSpan(blocks), options);
    EXPECT_TRUE(status.ok()) << status;
    std::map<float, int> counts;
    std::vector<float> values(Spec().BlockElements(2));
    for (const BlockFetch& block : blocks) {
      if (block.payload == PayloadType::kBank) DecodePayload(block.destination, DType::kF32, absl::MakeSpan(values));
      else DequantisePayload(Spec(), 2, block.destination.subspan(0, PayloadBytes(Spec(), 2, block.payload)), absl::MakeSpan(values));
      ++counts[std::round(values[FfnLayer(Spec(), 2, 0).down] * 1000) / 1000];  // int8 is off by the rounding of a scale
    }
    return counts;
  }

  absl::StatusOr<SlotTransferResult> Move(const std::string& from, const std::string& to, const std::string& slots,
                                          std::vector<std::string> leave = {}, std::function<void(const std::string&)> report = {}) {
    SlotTransferOptions options;
    options.slot_map = map_path_;
    options.report = std::move(report);
    ASSIGN_OR_RETURN(const auto transfers, SlotTransfers::Open(options));
    SlotTransfer transfer;
    transfer.from = from;
    transfer.to = Named(to);
    ASSIGN_OR_RETURN(transfer.slots, ParseSlots(slots));
    return transfers->Move(transfer, leave);
  }

  // Runs a move as a process of its own and kills it when it reports `stage`; false when it ended before.
  bool KillMover(const std::string& from, const std::string& to, const std::string& slots, const std::string& stage) {
    int ends[2];
    if (pipe2(ends, O_CLOEXEC) != 0) return false;
    const pid_t pid = Spawn("membank",
                            {"bank", "slots", "move", "--slot-map", map_path_, "--from", from, "--to", to + "=" + Server(to).address(), "--slots", slots,
                             "--lease-seconds", "2"},
                            ends[1]);
    close(ends[1]);
    std::string said;
    char buffer[256];
    while (said.find("\n  " + stage) == std::string::npos) {
      const ssize_t count = read(ends[0], buffer, sizeof(buffer));
      if (count <= 0) break;
      said.append(buffer, static_cast<size_t>(count));
    }
    kill(pid, SIGKILL);
    close(ends[0]);
    int status = 0;
    waitpid(pid, &status, 0);
    return WIFSIGNALED(status);
  }

  // Asks this one server, whatever the slot map says.
  static absl::Status Ask(const std::string& address, BlockId id, const std::string& version = "") {
    const auto stub = v1::MemoryService::NewStub(grpc::CreateChannel(address, grpc::InsecureChannelCredentials()));
    v1::FetchBlocksRequest request;
    request.set_bank_version(version);
    ToProto(id, request.add_blocks()->mutable_id());
    grpc::ClientContext context;
    const auto stream = stub->FetchBlocks(&context, request);
    for (v1::FetchChunk chunk; stream->Read(&chunk);) {
    }
    return FromGrpc(stream->Finish(), address);
  }

  // One step after the other until `stop`, and a checkpoint after every n-th.
  void Train(uint64_t checkpoint_every, const std::atomic<bool>& stop) {
    for (uint64_t step = 1; !stop; ++step) {
      const absl::Time begin = absl::Now();
      const absl::Status trained = Step(step);
      ASSERT_TRUE(trained.ok()) << "step " << step << ": " << trained;
      longest_ = std::max(longest_, absl::ToDoubleSeconds(absl::Now() - begin));
      steps_ = step;
      if (step % checkpoint_every != 0) continue;
      const absl::Status cut = Checkpoint(step);
      ASSERT_TRUE(cut.ok()) << "checkpoint at step " << step << ": " << cut;
    }
  }

  int Membank(std::vector<std::string> words) {
    const pid_t pid = Spawn("membank", std::move(words));
    int status = -1;
    waitpid(pid, &status, 0);
    return status;
  }

  std::string durability_ = "checkpoint", root_, map_path_;
  std::vector<std::unique_ptr<ServerProcess>> servers_;
  std::unique_ptr<MemoryClient> trainer_;
  uint64_t epoch_ = 0;
  uint64_t checkpoint_ = 0;
  std::atomic<uint64_t> steps_{0};  // of Train
  double longest_ = 0;              // of its steps, in seconds
};

class EachDurability : public SlotsTest, public ::testing::WithParamInterface<std::string> {
 protected:
  EachDurability() { durability_ = GetParam(); }
  bool by_step() const { return GetParam() == "step"; }
};
class StepSlots : public SlotsTest {
 protected:
  StepSlots() { durability_ = "step"; }
};
INSTANTIATE_TEST_SUITE_P(Slots, EachDurability, ::testing::Values("checkpoint", "step"), [](const auto& info) { return info.param; });

// 2 -> 3 -> 2 servers by `membank bank slots rebalance`, with a trainer that makes checkpoints, and a reader.
TEST_P(EachDurability, GrowAndShrinkUnderLoad) {
  ASSERT_OK(Begin(1, 1));
  std::atomic<bool> stop{false};
  std::atomic<uint64_t> reads{0};
  std::thread training([&] { Train(20, stop); });
  std::thread reading([&] {
    const auto reader = Connect();
    while (!stop) {
      const uint64_t before = steps_;
      FetchOptions options;
      options.min_step = before;
      const std::map<float, int> counts = Counts(reader.get(), options);
      ASSERT_GE(counts.begin()->first, before) << "a block is older than a step that was applied";
      ++reads;
    }
  });
  const auto run_for = [&](uint64_t more) {
    const uint64_t until = steps_ + more;
    for (int i = 0; i < 2000 && steps_ < until; ++i) std::this_thread::sleep_for(std::chrono::milliseconds(10));
  };
  const absl::Time began = absl::Now();
  run_for(25);
  const double rate_before = static_cast<double>(steps_) / absl::ToDoubleSeconds(absl::Now() - began);
  const std::vector<std::string> three = {"--server", "m0=" + Server("m0").address(), "--server", "m1=" + Server("m1").address(),
                                          "--server", "m2=" + Server("m2").address()};
  std::vector<std::string> grow = {"bank", "slots", "rebalance", "--slot-map", map_path_};
  std::vector<std::string> shrink = grow;
  grow.insert(grow.end(), three.begin(), three.end());
  shrink.insert(shrink.end(), three.begin(), three.begin() + 4);
  const uint64_t steps_before = steps_;
  const absl::Time moving = absl::Now();
  EXPECT_EQ(Membank(grow), 0);
  const double rate_moving = static_cast<double>(steps_ - steps_before) / absl::ToDoubleSeconds(absl::Now() - moving);
  const auto grown = SlotMap::Load(map_path_);
  ASSERT_OK(grown.status());
  ASSERT_EQ(grown->servers().size(), 3u);
  for (const char* id : {"m0", "m1", "m2"})  // of the blocks that hold bytes
    EXPECT_NEAR((grown->SlotsOf(id) & *ParseSlots("0-63")).count(), kClusters / 3, 2) << id;
  run_for(25);
  EXPECT_EQ(Membank(shrink), 0);
  const auto shrunk = SlotMap::Load(map_path_);
  ASSERT_OK(shrunk.status());
  EXPECT_EQ(shrunk->servers().size(), 2u);
  run_for(10);
  stop = true;
  training.join();
  reading.join();
  const float count = static_cast<float>(steps_);
  EXPECT_EQ(Counts(trainer_.get()), (std::map<float, int>{{count, kClusters}}));
  EXPECT_GT(reads, 10u);
  ASSERT_GE(checkpoint_, 40u);
  // Everything dies: all servers come back at one cut, or at the last step, with the slots they own now.
  for (auto& server : servers_) server->Signal(SIGKILL);
  Server("m0").Start().IgnoreError();
  Server("m1").Start().IgnoreError();
  const auto back = Connect();
  ASSERT_NE(back, nullptr);
  EXPECT_EQ(Counts(back.get()), (std::map<float, int>{{by_step() ? count : static_cast<float>(checkpoint_), kClusters}}));
  fmt::print("{} steps, {} reads of all blocks, 2 -> 3 -> 2 servers; {:.0f} steps/s before, {:.0f} while slots moved, the longest step took {:.2f} s\n",
             steps_.load(), reads.load(), rate_before, rate_moving, longest_);
}

// Checkpoints and versions that are older than a move hold the moved slots where they are owned now.
TEST_F(SlotsTest, OlderCheckpointsAndVersionsFollowTheSlots) {
  ASSERT_OK(Begin(1, 1));
  for (uint64_t step = 1; step <= 3; ++step) ASSERT_OK(Step(step));
  ASSERT_OK(Checkpoint(3));
  ASSERT_OK(trainer_->Publish("c3", "v3"));
  for (uint64_t step = 4; step <= 5; ++step) ASSERT_OK(Step(step));
  ASSERT_OK(Checkpoint(5));
  ASSERT_OK(Step(6));
  const std::string evens = FormatSlots(SlotMap::Load(map_path_)->SlotsOf("m0"));
  ASSERT_OK(Move("m0", "m2", evens, {"m0"}).status());  // m2 joins, m0 leaves
  EXPECT_EQ(Counts(trainer_.get()), (std::map<float, int>{{6, kClusters}}));
  FetchOptions version;
  version.bank_version = "v3";
  EXPECT_EQ(Counts(trainer_.get(), version), (std::map<float, int>{{3, kClusters}}));
  ASSERT_OK(Step(7));  // the run goes on, on the new server, too
  ASSERT_OK(Move("m2", "m1", "0,2,4").status());  // into a server that has its own cuts
  EXPECT_EQ(Counts(trainer_.get()), (std::map<float, int>{{7, kClusters}}));
  ASSERT_OK(trainer_->RestoreCheckpoint("c3"));
  EXPECT_EQ(Counts(trainer_.get()), (std::map<float, int>{{3, kClusters}}));
  ASSERT_OK(Move("m1", "m2", "0,2").status());  // while no run goes on
  ASSERT_OK(Begin(2, 4));
  ASSERT_OK(Step(4));
  EXPECT_EQ(Counts(trainer_.get()), (std::map<float, int>{{4, kClusters}}));
  for (const char* id : {"m1", "m2"}) Server(id).Signal(SIGKILL);
  for (const char* id : {"m1", "m2"}) ASSERT_OK(Server(id).Start());
  EXPECT_EQ(Counts(trainer_.get()), (std::map<float, int>{{3, kClusters}}));
  EXPECT_EQ(Counts(trainer_.get(), version), (std::map<float, int>{{3, kClusters}}));
}

// kill -9 of the old or the new owner at every stage: what the slot map says afterwards is what the servers do.
TEST_P(EachDurability, AKillAtAnyStageLeavesOneOwner) {
  ASSERT_OK(Begin(1, 1));
  ASSERT_OK(Step(1));
  ASSERT_OK(Checkpoint(1));
  ASSERT_OK(Move("m1", "m2", "1,3,5").status());
  uint64_t head = 1, run_epoch = 1;
  int changed = 0, kept = 0, struck = 0;
  for (const std::string stage : {"copied", "fenced", "behind", "switching", "switched"}) {
    for (const bool old_owner : {true, false}) {
      SCOPED_TRACE(fmt::format("kill of the {} owner at \"{}\"", old_owner ? "old" : "new", stage));
      ASSERT_OK(Step(++head));  // beyond the last checkpoint
      const SlotMap before = *SlotMap::Load(map_path_);
      const std::string from = before.servers()[before.OwnerOfSlot(2)].id, to = from == "m0" ? "m2" : "m0";
      bool killed = false;
      const auto moved = Move(from, to, "2,4,6", {}, [&](const std::string& report) {
        if (killed || !report.starts_with(stage)) return;
        killed = true;
        Server(old_owner ? from : to).Signal(SIGKILL);
      });
      ASSERT_TRUE(killed);
      ++struck;
      ASSERT_OK(Server(old_owner ? from : to).Start());
      const SlotMap after = *SlotMap::Load(map_path_);
      const std::string owner = after.servers()[after.OwnerOfSlot(2)].id;
      EXPECT_EQ(moved.ok(), owner == to) << moved.status();
      ++(owner == to ? changed : kept);
      for (uint32_t cluster = 0; cluster < 8; ++cluster) {  // each block is served by its owner alone
        std::vector<std::string> owners;
        for (const SlotServer& server : after.servers()) {
          if (Ask(Server(server.id).address(), {2, cluster}).ok()) owners.push_back(server.id);
        }
        EXPECT_THAT(owners, ::testing::ElementsAre(after.servers()[after.OwnerOf({2, cluster})].id)) << cluster;
      }
      // As a trainer does after an error: back to its last checkpoint, which is one cut of the owners of now; where steps are durable nothing is
      // taken back.
      if (!by_step()) {
        ASSERT_OK(trainer_->RestoreCheckpoint(fmt::format("c{}", checkpoint_)));
        head = checkpoint_;
      }
      EXPECT_EQ(Counts(trainer_.get()), (std::map<float, int>{{static_cast<float>(head), kClusters}}));
      ASSERT_OK(Begin(++run_epoch, head + 1));
      ASSERT_OK(Step(++head));
      if (!by_step() || head % 4 == 0) ASSERT_OK(Checkpoint(head));
      EXPECT_EQ(Counts(trainer_.get()), (std::map<float, int>{{static_cast<float>(head), kClusters}}));
    }
  }
  EXPECT_GE(changed, 2);
  EXPECT_GE(kept, 6);
  fmt::print("{} kills: {} moves took place, {} did not\n", struck, changed, kept);
}

// kill -9 of the command that moves: the trainer waits for at most the lease, nothing fails, and the command can be run again.
TEST_P(EachDurability, AKilledMoverFailsNoRequest) {
  ASSERT_OK(Begin(1, 1));
  std::atomic<bool> stop{false};
  std::thread training([&] { Train(50, stop); });
  int killed = 0;
  for (const std::string stage : {"copied", "fenced", "behind", "switching", "switched"}) {
    const SlotMap before = *SlotMap::Load(map_path_);
    const std::string from = before.servers()[before.OwnerOfSlot(2)].id, to = from == "m0" ? "m2" : "m0";
    killed += KillMover(from, to, "2,4,6", stage);
  }
  const SlotMap before = *SlotMap::Load(map_path_);
  const std::string from = before.servers()[before.OwnerOfSlot(2)].id, to = from == "m0" ? "m2" : "m0";
  EXPECT_OK(Move(from, to, "2,4,6").status());
  const uint64_t until = steps_ + 5;
  for (int i = 0; i < 1000 && steps_ < until; ++i) std::this_thread::sleep_for(std::chrono::milliseconds(10));
  EXPECT_GE(steps_, until);
  stop = true;
  training.join();
  EXPECT_GE(killed, 4);
  EXPECT_EQ(Counts(trainer_.get()), (std::map<float, int>{{static_cast<float>(steps_), kClusters}}));
  fmt::print("{} kills of the mover, {} steps, the longest took {:.2f} s\n", killed, steps_.load(), longest_);
}

// Under load: kill -9 of the mover, of any servers, or of all of it, at random moments of moves; the trainer goes on from the last step that all
// servers have. Every block ends where an undisturbed run ends: at the number of steps.
TEST_F(StepSlots, AnyoneMayDieInTheMiddleOfAMoveUnderLoad) {
  const uint32_t seed = std::random_device()();
  SCOPED_TRACE(fmt::format("seed {}", seed));
  std::mt19937 random(seed);
  uint64_t head = 0, epoch = 0;
  int moved = 0, moves_killed = 0;
  const std::vector<std::string> stages = {"copied", "behind", "switching", "switched", "switched"};
  for (int round = 0; round < 8; ++round) {
    ASSERT_OK(Begin(++epoch, head + 1));
    std::atomic<bool> stop{false};
    std::atomic<uint64_t> acknowledged{head};
    std::thread training([&] {
      while (!stop) {
        if (!Step(acknowledged + 1).ok()) break;
        ++acknowledged;
        if (acknowledged % 40 == 0 && !Checkpoint(acknowledged).ok()) break;
      }
    });
    std::this_thread::sleep_for(std::chrono::milliseconds(100));
    const SlotMap before = *SlotMap::Load(map_path_);
    const std::string from = before.servers()[before.OwnerOfSlot(2)].id, to = from == "m0" ? "m2" : from == "m2" ? "m1" : "m0";
    const std::string stage = stages[random() % stages.size()];
    const uint32_t victims = 1 + random() % 7;
    const bool mover_dies = round % 2 == 0;
    const auto strike = [&] {
      for (size_t i = 0; i < servers_.size(); ++i)
        if (victims & (1u << i)) servers_[i]->Send(SIGKILL);
    };
    if (mover_dies) {
      moves_killed += KillMover(from, to, "2,4,6", stage);
      strike();
    } else {
      bool struck = false;
      (void)Move(from, to, "2,4,6", {}, [&](const std::string& report) {
        if (struck || !report.starts_with(stage)) return;
        struck = true;
        strike();
      });
      strike();
    }
    stop = true;
    for (auto& server : servers_) server->Signal(SIGKILL);
    for (auto& server : servers_) ASSERT_OK(server->Start());
    training.join();
    const auto status = trainer_->GetStatus();
    ASSERT_OK(status.status());
    ASSERT_GE(status->head_step, acknowledged) << "an acknowledged step is gone";
    ASSERT_LE(status->head_step, acknowledged + 1);
    ASSERT_OK(trainer_->Rewind(status->head_step));
    head = status->head_step;
    ASSERT_EQ(Counts(trainer_.get()), (std::map<float, int>{{static_cast<float>(head), kClusters}})) << "round " << round << ", killed at " << stage;
    moved += SlotMap::Load(map_path_)->epoch() > before.epoch();
  }
  fmt::print("seed {}: 8 rounds, {} moves took place, {} movers killed; {} steps, each counted once\n", seed, moved, moves_killed, head);
  EXPECT_GT(head, 8u);
}

TEST_F(SlotsTest, APurgeReachesReplicas) {
  ASSERT_OK(Begin(1, 1));
  ASSERT_OK(Step(1));
  ASSERT_OK(Checkpoint(1));
  ASSERT_OK(trainer_->Publish("c1", "v1"));
  ServerProcess replica("m0r", root_, {"--replica-of", "m0"});
  ASSERT_OK(replica.Start());
  const auto source = OpenSlotMapFile(map_path_);
  ASSERT_OK((*source)->Replace(*(*source)->Load()->WithReplicas("m0", {replica.address()})));
  const auto stub = v1::MemoryService::NewStub(grpc::CreateChannel(replica.address(), grpc::InsecureChannelCredentials()));
  const auto header = [&] {  // of a block of v1 on the replica; blocked when it does not have the version yet
    v1::FetchBlocksRequest request;
    request.set_bank_version("v1");
    ToProto(BlockId{2, 0}, request.add_blocks()->mutable_id());
    v1::BlockHeader first;
    first.set_blocked(true);
    for (int i = 0; i < 500 && first.blocked(); ++i, std::this_thread::sleep_for(std::chrono::milliseconds(20))) {
      grpc::ClientContext context;
      const auto stream = stub->FetchBlocks(&context, request);
      for (v1::FetchChunk chunk; stream->Read(&chunk);)
        if (chunk.has_header()) first = chunk.header();
      (void)stream->Finish();
    }
    return first;
  };
  EXPECT_EQ(header().version(), 1u);
  ASSERT_EQ(Membank({"bank", "purge", "root", "--slot-map", map_path_}), 0);
  ASSERT_EQ(Membank({"bank", "unblock", "root", "--slot-map", map_path_}), 0);
  const v1::BlockHeader after = header();
  EXPECT_FALSE(after.blocked());
  EXPECT_EQ(after.version(), 0u) << "as if never trained";
}

// Published versions outlive their owner's absence on a replica, whether the owner died or hangs; rolling back is naming another version.
TEST_F(SlotsTest, ReplicasServeVersionsWhileTheOwnerIsAway) {
  ASSERT_OK(Begin(1, 1));
  ServerProcess replica("m0r", root_, {"--replica-of", "m0"});
  for (uint64_t step = 1; step <= 3; ++step) {
    ASSERT_OK(Step(step));
    if (step == 1) continue;
    ASSERT_OK(Checkpoint(step));
    ASSERT_OK(trainer_->Publish(fmt::format("c{}", step), fmt::format("v{}", step)));
    ASSERT_OK(trainer_->Publish(fmt::format("c{}", step), fmt::format("v{}-int8", step), PayloadType::kI8Rows));
    if (step == 2) ASSERT_OK(replica.Start());
  }
  const auto source = OpenSlotMapFile(map_path_);
  ASSERT_OK((*source)->Replace(*(*source)->Load()->WithReplicas("m0", {replica.address()})));
  const auto reader = Connect();
  ASSERT_NE(reader, nullptr);
  FetchOptions newest, older, as_int8;
  as_int8.bank_version = "v3-int8";
  as_int8.int8 = true;
  newest.bank_version = "v3";
  older.bank_version = "v2";
  for (int i = 0; i < 500 && !Ask(replica.address(), {2, 0}, "v3-int8").ok(); ++i) std::this_thread::sleep_for(std::chrono::milliseconds(20));
  const absl::Status head = Ask(replica.address(), {2, 0});
  EXPECT_THAT(std::string(head.message()), ::testing::HasSubstr("replica of \"m0\""));

  const auto seconds_of = [&](const FetchOptions& version, float count) {
    const absl::Time begin = absl::Now();
    EXPECT_EQ(Counts(reader.get(), version), (std::map<float, int>{{count, kClusters}}));
    return absl::ToDoubleSeconds(absl::Now() - begin);
  };
  seconds_of(newest, 3);
  Server("m0").Signal(SIGKILL);
  const double dead = seconds_of(newest, 3), next = seconds_of(newest, 3), rolled_back = seconds_of(older, 2);
  EXPECT_LT(dead, 5);
  EXPECT_LT(next, 1);
  EXPECT_LT(rolled_back, 1);
  seconds_of(as_int8, 3);
  const auto listed = reader->ListVersions(std::chrono::seconds(10));
  ASSERT_TRUE(listed.ok()) << listed.status();
  EXPECT_EQ(*listed, (std::vector<std::string>{"v2", "v2-int8", "v3", "v3-int8"})) << "the replica says it";
  Server("m1").Signal(SIGKILL);  // it has no replica
  const absl::Status unsaid = reader->ListVersions(std::chrono::seconds(3)).status();
  EXPECT_THAT(std::string(unsaid.message()), ::testing::HasSubstr("memory server m1 at"));
  ASSERT_OK(Server("m1").Start());
  ASSERT_OK(Server("m0").Start());
  const auto another = Connect();
  ASSERT_NE(another, nullptr);
  Server("m0").Send(SIGSTOP);
  const absl::Time begin = absl::Now();
  EXPECT_EQ(Counts(another.get(), newest), (std::map<float, int>{{3, kClusters}}));
  const double hangs = absl::ToDoubleSeconds(absl::Now() - begin);
  Server("m0").Send(SIGCONT);
  EXPECT_LT(hangs, 5);
  fmt::print("owner dead: {:.2f} s, then {:.2f} s; roll-back {:.2f} s; owner hangs: {:.2f} s\n", dead, next, rolled_back, hangs);
}

TEST_F(SlotsTest, WhatCannotMoveIsRefusedAndNamed) {
  const std::vector<std::tuple<std::string, std::string, std::string, std::string>> bad = {
      {"m0", "m2", "1", "slots 1 do not belong to server \"m0\" by slot map epoch 2"},
      {"m0", "m0", "2", "on server \"m0\" already"},
      {"m7", "m0", "2", "slots 2 do not belong to server \"m7\""}};
  for (const auto& [from, to, slots, text] : bad) {
    const absl::Status refused = Move(from, to, slots).status();
    EXPECT_FALSE(refused.ok());
    EXPECT_THAT(std::string(refused.message()), ::testing::HasSubstr(text));
  }
  EXPECT_EQ(SlotMap::Load(map_path_)->epoch(), 2u);
}

}  // namespace
}  // namespace membank
