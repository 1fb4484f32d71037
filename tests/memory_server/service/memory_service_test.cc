// The memory servers as a client sees them: two shards behind real gRPC on loopback.
#include "memory_server/memory_service.h"

#include <cmath>
#include <thread>

#include "absl/time/clock.h"
#include "common/bank/block_init.h"
#include "common/bank/block_layout.h"
#include "common/bank/gradient_codec.h"
#include "common/base/crc32c.h"
#include "common/base/status_macros.h"
#include "common/rpc/channel.h"
#include "common/rpc/status.h"
#include "common/rpc/wire.h"
#include "gmock/gmock.h"
#include "grpcpp/generic/generic_stub.h"
#include "tests/testing/memory_cluster.h"
#include "tests/testing/status_check.h"

namespace membank {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using testing_support::MemoryCluster;
using testing_support::TinySpec;

std::string Message(const absl::Status& status) { return std::string(status.message()); }

struct Fetched {
  std::vector<BlockFetch> blocks;
  std::vector<std::vector<float>> values;
};

// Buffers for `ids`, F32.
Fetched Want(const BankSpec& spec, const std::vector<BlockId>& ids) {
  Fetched fetched;
  for (BlockId id : ids) fetched.values.emplace_back(spec.BlockElements(id.level), -99.0f);
  for (size_t i = 0; i < ids.size(); ++i) {
    fetched.blocks.push_back({ids[i], absl::MakeSpan(reinterpret_cast<uint8_t*>(fetched.values[i].data()), fetched.values[i].size() * 4)});
  }
  return fetched;
}

std::vector<BlockId> AllBlocks(const BankSpec& spec) {
  std::vector<BlockId> ids;
  for (uint32_t level = 1; level <= spec.depth(); ++level) {
    for (uint32_t cluster = 0; cluster <= ClusterCount(spec.fan_out, level); ++cluster) ids.push_back({level, cluster});
  }
  return ids;
}

std::vector<float> Initial(const BankSpec& spec, BlockId id) {
  std::vector<float> values(spec.BlockElements(id.level));
  InitBlock(spec, id, absl::MakeSpan(values));
  return values;
}

BlockGradient Gradient(BlockId id, const std::vector<float>& values) {
  return {id, DType::kF32, absl::MakeConstSpan(reinterpret_cast<const uint8_t*>(values.data()), values.size() * 4)};
}

RunSettings SgdRun(uint32_t world_size = 1) {
  RunSettings run;
  run.run_id = "run";
  run.world_size = world_size;
  run.optimizer = OptimizerKind::kSgd;
  return run;
}

constexpr auto kSecond = std::chrono::milliseconds(1000);

class MemoryServiceTest : public ::testing::Test {
 protected:
  const BankSpec spec_ = TinySpec();
  MemoryCluster cluster_{spec_, 2};
  std::unique_ptr<MemoryClient> client_ = cluster_.Connect();

  // One step of one rank: every element of the block goes up by `count` (SGD, learning rate 1, gradient -count).
  absl::Status Step(uint64_t step, BlockId id, float count) {
    const std::vector<float> gradient(spec_.BlockElements(id.level), -count);
    const BlockGradient push = Gradient(id, gradient);
    RETURN_IF_ERROR(client_->Push({"run", 1, step}, 0, {&push, 1}));
    RETURN_IF_ERROR(client_->PrepareStep({"run", 1, step}, 5 * kSecond).status());
    return client_->ApplyStep({"run", 1, step}, {1.0f, 1.0f, 0.0f});
  }

  // The first element of the down projection, which starts at zero: with integer steps it is the count.
  float Count(const Fetched& fetched, size_t i) {
    return fetched.values[i][FfnLayer(spec_, fetched.blocks[i].id.level, 0).down];
  }
};

TEST_F(MemoryServiceTest, RanksMeetAndFollowTheOneThatCommits) {
  ASSERT_OK(client_->BeginRun(SgdRun(2)));
  ASSERT_OK(client_->JoinRun({0, 2, "a", "run", 1, "settings"}, kSecond).status());
  const auto joined = client_->JoinRun({1, 2, "b"}, kSecond);
  ASSERT_OK(joined.status());
  EXPECT_EQ(joined->run_id, "run");
  EXPECT_EQ(joined->epoch, 1u);
  EXPECT_EQ(joined->description, "settings");
  const double first[] = {0.1, 1}, second[] = {0.2, 2};
  ASSERT_OK(client_->Push({"run", 1, 1}, 0, {}, first));
  const absl::Status missing = client_->AwaitStep({"run", 1, 1}, kSecond).status();
  EXPECT_EQ(missing.code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_THAT(std::string(missing.message()), HasSubstr("ranks 1 (of 2)"));
  ASSERT_OK(client_->Push({"run", 1, 1}, 1, {}, second));
  ASSERT_OK(client_->PrepareStep({"run", 1, 1}, kSecond).status());
  ASSERT_OK(client_->ApplyStep({"run", 1, 1}, {1.0f, 1.0f, 0.0f}));
  const auto sums = client_->AwaitStep({"run", 1, 1}, kSecond);
  ASSERT_OK(sums.status());
  EXPECT_EQ(*sums, (std::vector<double>{0.1 + 0.2, 3}));
}

TEST_F(MemoryServiceTest, Int8GradientsAreAppliedAndThoseThatAreNotFiniteRefused) {
  ASSERT_OK(client_->BeginRun(SgdRun()));
  const BlockId id{1, 2};
  const BlockShape shape = ShapeOf(spec_, 1);
  std::vector<float> values(shape.elements(), -2.0f);
  std::vector<uint8_t> bytes(GradientBytes(kI8Rows, shape));
  EncodeInt8Rows(shape, absl::MakeSpan(values), absl::MakeSpan(bytes));
  const BlockGradient push{id, kI8Rows, bytes};
  ASSERT_OK(client_->Push({"run", 1, 1}, 0, {&push, 1}));
  ASSERT_OK(client_->PrepareStep({"run", 1, 1}, kSecond).status());
  ASSERT_OK(client_->ApplyStep({"run", 1, 1}, {1.0f, 1.0f, 0.0f}));
  Fetched fetched = Want(spec_, {id});
  ASSERT_OK(client_->Fetch(absl::MakeSpan(fetched.blocks), {}));
  EXPECT_NEAR(Count(fetched, 0), 2.0f, 1e-6);
  bytes[3] = 0x7f, bytes[2] = 0xc0;  // the first row's scale: NaN
  const absl::Status refused = client_->Push({"run", 1, 2}, 0, {&push, 1});
  EXPECT_EQ(refused.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(refused.message()), HasSubstr("gradient row 0 has the scale nan"));
}

TEST_F(MemoryServiceTest, UntouchedBlocksOfBothServersAreTheInitialValues) {
  Fetched fetched = Want(spec_, AllBlocks(spec_));
  ASSERT_OK(client_->Fetch(absl::MakeSpan(fetched.blocks), {}));
  for (size_t i = 0; i < fetched.blocks.size(); ++i) {
    EXPECT_EQ(fetched.blocks[i].version, 0u);
    EXPECT_FALSE(fetched.blocks[i].unchanged);
    EXPECT_EQ(fetched.values[i], Initial(spec_, fetched.blocks[i].id)) << ToString(fetched.blocks[i].id);
  }
  EXPECT_EQ(client_->traffic().fetched_blocks, AllBlocks(spec_).size());
}

TEST_F(MemoryServiceTest, UnchangedBlocksTravelWithoutPayload) {
  ASSERT_OK(client_->BeginRun(SgdRun()));
  ASSERT_OK(Step(1, {1, 2}, 3));
  const ClientTraffic before = client_->traffic();
  Fetched fetched = Want(spec_, {{1, 1}, {1, 2}, {1, 2}});
  fetched.blocks[0].newer_than = 0;
  fetched.blocks[1].newer_than = 0;
  fetched.blocks[2].newer_than = 1;
  ASSERT_OK(client_->Fetch(absl::MakeSpan(fetched.blocks), {}));
  EXPECT_TRUE(fetched.blocks[0].unchanged);
  EXPECT_EQ(fetched.values[0][0], -99.0f);
  EXPECT_FALSE(fetched.blocks[1].unchanged);
  EXPECT_EQ(fetched.blocks[1].version, 1u);
  EXPECT_EQ(Count(fetched, 1), 3);
  EXPECT_TRUE(fetched.blocks[2].unchanged);
  EXPECT_EQ(client_->traffic().unchanged_blocks, 2u);
  EXPECT_EQ(client_->traffic().fetched_bytes - before.fetched_bytes, spec_.BlockBytes(1));
}

TEST_F(MemoryServiceTest, UnixSocketsServeAWorkerOnTheSameMachine) {
  cluster_.Start(*SlotMap::Striped({{"m0", "unix:" + cluster_.directory() + "/m0.sock"}, {"m1", "unix:" + cluster_.directory() + "/m1.sock"}}, 2));
  client_ = cluster_.Connect();
  ASSERT_OK(client_->BeginRun(SgdRun()));
  ASSERT_OK(Step(1, {1, 2}, 3));
  Fetched fetched = Want(spec_, {{1, 1}, {1, 2}});
  ASSERT_OK(client_->Fetch(absl::MakeSpan(fetched.blocks), {}));
  EXPECT_EQ(fetched.values[0], Initial(spec_, {1, 1}));
  EXPECT_EQ(Count(fetched, 1), 3);
}

// Integer gradients with SGD and learning rate 1: a weight's value is the count of what was applied.
TEST_F(MemoryServiceTest, BlocksOfAnyServerCanBeAnnounced) {
  EXPECT_OK(client_->Prefetch(AllBlocks(spec_)));
  EXPECT_OK(client_->Prefetch({}));
  const BlockId unknown{9, 0};
  EXPECT_THAT(Message(client_->Prefetch({&unknown, 1})), HasSubstr("block 9/0 is not in bank"));
}

TEST_F(MemoryServiceTest, PushesOfAllRanksCountExactlyOnce) {
  ASSERT_OK(client_->BeginRun(SgdRun(2)));
  const std::vector<BlockId> ids = {{1, 0}, {1, 1}, {2, 5}, {2, 16}};
  float expected = 0;
  for (uint64_t step = 1; step <= 5; ++step) {
    for (uint32_t rank : {1u, 0u}) {
      std::vector<std::vector<float>> values;
      std::vector<BlockGradient> gradients;
      for (BlockId id : ids) values.emplace_back(spec_.BlockElements(id.level), -static_cast<float>(rank + step));
      for (size_t i = 0; i < ids.size(); ++i) gradients.push_back(Gradient(ids[i], values[i]));
      for (int repeat = 0; repeat < 3; ++repeat) ASSERT_OK(client_->Push({"run", 1, step}, rank, gradients));
      expected += static_cast<float>(rank + step);
    }
    for (int repeat = 0; repeat < 2; ++repeat) {
      auto sum = client_->PrepareStep({"run", 1, step}, 5 * kSecond);
      ASSERT_OK(sum.status());
      const double one = 2.0 * static_cast<double>(step) + 1;
      EXPECT_DOUBLE_EQ(*sum, one * one * 2 * (static_cast<double>(spec_.BlockElements(1)) + static_cast<double>(spec_.BlockElements(2))));
    }
    for (int repeat = 0; repeat < 3; ++repeat) ASSERT_OK(client_->ApplyStep({"run", 1, step}, {1.0f, 1.0f, 0.0f}));
    for (uint32_t rank : {0u, 1u}) {  // an answer that got lost: the push comes again after the step was applied
      const std::vector<float> late(spec_.BlockElements(1), 1000.0f);
      const BlockGradient push = Gradient({1, 0}, late);
      ASSERT_OK(client_->Push({"run", 1, step}, rank, {&push, 1}));
    }
  }
  Fetched fetched = Want(spec_, ids);
  FetchOptions options;
  options.min_step = 5;
  ASSERT_OK(client_->Fetch(absl::MakeSpan(fetched.blocks), options));
  for (size_t i = 0; i < ids.size(); ++i) {
    EXPECT_EQ(fetched.blocks[i].version, 5u);
    EXPECT_EQ(Count(fetched, i), expected);
  }
  auto status = client_->GetStatus();
  ASSERT_OK(status.status());
  EXPECT_EQ(status->head_step, 5u);
  EXPECT_EQ(status->run_id, "run");
  EXPECT_EQ(status->touched_blocks, ids.size());
}

TEST_F(MemoryServiceTest, BF16GradientsAreSummedToo) {
  ASSERT_OK(client_->BeginRun(SgdRun()));
  const std::vector<uint16_t> gradient(spec_.BlockElements(2), FloatToBF16(-7.0f));
  const BlockGradient push = {{2, 3}, DType::kBF16, absl::MakeConstSpan(reinterpret_cast<const uint8_t*>(gradient.data()), gradient.size() * 2)};
  ASSERT_OK(client_->Push({"run", 1, 1}, 0, {&push, 1}));
  ASSERT_OK(client_->PrepareStep({"run", 1, 1}, 5 * kSecond).status());
  ASSERT_OK(client_->ApplyStep({"run", 1, 1}, {0.5f, 2.0f, 0.0f}));
  Fetched fetched = Want(spec_, {{2, 3}});
  ASSERT_OK(client_->Fetch(absl::MakeSpan(fetched.blocks), {}));
  EXPECT_EQ(Count(fetched, 0), 7);
}

TEST_F(MemoryServiceTest, NanAndInfinityAreRefusedBeforeTheyAreSummed) {
  ASSERT_OK(client_->BeginRun(SgdRun()));
  for (float bad : {NAN, INFINITY}) {
    std::vector<float> values(spec_.BlockElements(1), 1.0f);
    values[17] = bad;
    const BlockGradient push = Gradient({1, 1}, values);
    const absl::Status status = client_->Push({"run", 1, 1}, 0, {&push, 1});
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(Message(status), AllOf(HasSubstr("1/1"), HasSubstr("memory server m1 at 127.0.0.1:")));
  }
  ASSERT_OK(Step(1, {1, 1}, 2));  // the refused pushes left nothing behind
  Fetched fetched = Want(spec_, {{1, 1}});
  ASSERT_OK(client_->Fetch(absl::MakeSpan(fetched.blocks), {}));
  EXPECT_EQ(Count(fetched, 0), 2);
}

TEST_F(MemoryServiceTest, AGapAForeignRunAndAnOldEpochAreRefused) {
  RunSettings run = SgdRun();
  run.epoch = 4;
  ASSERT_OK(client_->BeginRun(run));
  EXPECT_EQ(client_->Push({"run", 4, 2}, 0, {}).code(), absl::StatusCode::kOutOfRange);
  EXPECT_FALSE(client_->Push({"another", 4, 1}, 0, {}).ok());
  EXPECT_EQ(client_->Push({"run", 3, 1}, 0, {}).code(), absl::StatusCode::kAborted);
  EXPECT_EQ(client_->Push({"run", 4, 1}, 7, {}).code(), absl::StatusCode::kInvalidArgument);
  run.epoch = 3;
  EXPECT_FALSE(client_->BeginRun(run).ok());
}

TEST_F(MemoryServiceTest, AFetchWaitsForItsStepWhileTheStepGoesOn) {
  ASSERT_OK(client_->BeginRun(SgdRun()));
  std::vector<std::thread> waiters;
  std::vector<float> counts(8);
  for (size_t i = 0; i < counts.size(); ++i) {  // more waiters than gRPC has threads
    waiters.emplace_back([&, i] {
      Fetched fetched = Want(spec_, {{1, 0}, {1, 1}});
      FetchOptions options;
      options.min_step = 1;
      EXPECT_OK(client_->Fetch(absl::MakeSpan(fetched.blocks), options));
      counts[i] = Count(fetched, 0);
    });
  }
  absl::SleepFor(absl::Milliseconds(200));
  EXPECT_OK(Step(1, {1, 0}, 9));
  for (std::thread& waiter : waiters) waiter.join();
  EXPECT_THAT(counts, ::testing::Each(9.0f));
}

TEST_F(MemoryServiceTest, AWaitEndsAtItsDeadline) {
  Fetched fetched = Want(spec_, {{1, 0}});
  FetchOptions options;
  options.min_step = 3;
  options.timeout = std::chrono::milliseconds(300);
  const absl::Time start = absl::Now();
  EXPECT_EQ(client_->Fetch(absl::MakeSpan(fetched.blocks), options).code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_LT(absl::Now() - start, absl::Seconds(5));
}

TEST_F(MemoryServiceTest, PrepareNamesTheMissingRank) {
  ASSERT_OK(client_->BeginRun(SgdRun(2)));
  ASSERT_OK(client_->Push({"run", 1, 1}, 0, {}));
  const auto sum = client_->PrepareStep({"run", 1, 1}, kSecond);
  EXPECT_EQ(sum.status().code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_THAT(std::string(sum.status().message()), HasSubstr("waits for pushes of ranks 1 (of 2)"));
}

TEST_F(MemoryServiceTest, CheckpointPublishAndRestore) {
  ASSERT_OK(client_->BeginRun(SgdRun()));
  ASSERT_OK(Step(1, {2, 9}, 4));
  EXPECT_FALSE(client_->PrepareCheckpoint("cut", 2).ok());  // the head is at 1
  ASSERT_OK(client_->PrepareCheckpoint("cut", 1));
  auto list = client_->ListCheckpoints();
  ASSERT_OK(list.status());
  ASSERT_EQ(list->size(), 1u);
  EXPECT_FALSE((*list)[0].committed);
  EXPECT_FALSE(client_->Publish("cut", "v1").ok());  // not committed yet
  ASSERT_OK(client_->CommitCheckpoint("cut"));
  ASSERT_OK(client_->Publish("cut", "v1"));
  EXPECT_EQ(client_->GetStatus()->versions, std::vector<BankVersion>{{"v1"}});
  ASSERT_OK(Step(2, {2, 9}, 5));

  Fetched live = Want(spec_, {{2, 9}, {2, 10}}), published = Want(spec_, {{2, 9}, {2, 10}});
  ASSERT_OK(client_->Fetch(absl::MakeSpan(live.blocks), {}));
  FetchOptions options;
  options.bank_version = "v1";
  ASSERT_OK(client_->Fetch(absl::MakeSpan(published.blocks), options));
  EXPECT_EQ(Count(live, 0), 9);
  EXPECT_EQ(Count(published, 0), 4);
  EXPECT_EQ(published.values[1], Initial(spec_, {2, 10}));
  options.bank_version = "v2";
  const absl::Status missing = client_->Fetch(absl::MakeSpan(published.blocks), options);
  EXPECT_EQ(missing.code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(Message(missing), HasSubstr("v1"));

  ASSERT_OK(client_->RestoreCheckpoint("cut"));
  ASSERT_OK(client_->Fetch(absl::MakeSpan(live.blocks), {}));
  EXPECT_EQ(Count(live, 0), 4);
  EXPECT_EQ(client_->GetStatus()->head_step, 1u);
}

TEST_F(MemoryServiceTest, AnInt8VersionTravelsAsInt8) {
  ASSERT_OK(client_->BeginRun(SgdRun()));
  ASSERT_OK(Step(1, {2, 9}, 4));
  ASSERT_OK(client_->PrepareCheckpoint("cut", 1));
  ASSERT_OK(client_->CommitCheckpoint("cut"));
  ASSERT_OK(client_->Publish("cut", "v1"));
  ASSERT_OK(client_->Publish("cut", "v1-int8", PayloadType::kI8Rows));
  EXPECT_EQ(client_->GetStatus()->versions, (std::vector<BankVersion>{{"v1"}, {"v1-int8", PayloadType::kI8Rows}}));

  Fetched whole = Want(spec_, {{2, 9}, {2, 10}});
  FetchOptions options;
  options.bank_version = "v1";
  ASSERT_OK(client_->Fetch(absl::MakeSpan(whole.blocks), options));
  options.bank_version = "v1-int8";
  Fetched smaller = Want(spec_, {{2, 9}, {2, 10}});
  EXPECT_THAT(Message(client_->Fetch(absl::MakeSpan(smaller.blocks), options)), HasSubstr("comes as int8, which this caller does not read"));

  options.int8 = true;
  const uint64_t bytes = PayloadBytes(spec_, 2, PayloadType::kI8Rows), before = client_->traffic().fetched_bytes;
  ASSERT_OK(client_->Fetch(absl::MakeSpan(smaller.blocks), options));
  EXPECT_EQ(client_->traffic().fetched_bytes - before, 2 * bytes);
  for (int i = 0; i < 2; ++i) {
    std::vector<uint8_t> expected(bytes);
    const absl::Span<const uint8_t> values(reinterpret_cast<const uint8_t*>(whole.values[i].data()), whole.values[i].size() * sizeof(float));
    ASSERT_OK(QuantisePayload(spec_, 2, values, absl::MakeSpan(expected)));
    EXPECT_EQ(smaller.blocks[i].payload, PayloadType::kI8Rows);
    const absl::Span<uint8_t> payload = smaller.blocks[i].destination.subspan(0, bytes);
    EXPECT_EQ(std::vector<uint8_t>(payload.begin(), payload.end()), expected) << i;
  }
  options.bank_version = "v1";
  ASSERT_OK(client_->Fetch(absl::MakeSpan(smaller.blocks), options));
  EXPECT_EQ(smaller.blocks[0].payload, PayloadType::kBank) << "it says what came";
  EXPECT_EQ(smaller.values, whole.values);
}

TEST_F(MemoryServiceTest, AWrongSpecHashNamesBoth) {
  MemoryClientOptions options;
  options.slot_map_path = cluster_.slot_map_path();
  options.expected_spec_hash = "0123456789abcdef0123456789abcdef";
  const auto client = MemoryClient::Connect(options);
  EXPECT_EQ(client.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(Message(client.status()), AllOf(HasSubstr(options.expected_spec_hash), HasSubstr(spec_.Hash())));
}

TEST_F(MemoryServiceTest, AWrongSlotCarriesTheServersEpoch) {
  MemoryClientOptions options;
  options.servers = {cluster_.address(1), cluster_.address(0)};  // in the wrong order
  auto client = MemoryClient::Connect(options);
  ASSERT_OK(client.status());
  Fetched fetched = Want(spec_, {{1, 0}});
  const absl::Status status = (*client)->Fetch(absl::MakeSpan(fetched.blocks), {});
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(WrongSlotEpoch(status), 1u);
  EXPECT_THAT(Message(status), HasSubstr("1/0"));
}

TEST_F(MemoryServiceTest, AfterAMoveTheClientReadsTheNewSlotMap) {
  const std::vector<SlotServer> swapped = {{"m1", cluster_.address(1)}, {"m0", cluster_.address(0)}};
  cluster_.Stop();
  const auto moved = SlotMap::Striped(swapped, 2);
  ASSERT_OK(moved.status());
  cluster_.Start(*moved);
  Fetched fetched = Want(spec_, {{1, 0}, {1, 1}, {2, 7}});
  ASSERT_OK(client_->Fetch(absl::MakeSpan(fetched.blocks), {}));
  EXPECT_EQ(fetched.values[2], Initial(spec_, {2, 7}));
  EXPECT_EQ(client_->GetStatus()->slot_map_epoch, 2u);
}

TEST_F(MemoryServiceTest, BadBuffersAndBlocksAreRefusedByTheClient) {
  Fetched fetched = Want(spec_, {{1, 0}});
  fetched.blocks[0].destination = fetched.blocks[0].destination.subspan(4);
  EXPECT_EQ(client_->Fetch(absl::MakeSpan(fetched.blocks), {}).code(), absl::StatusCode::kInvalidArgument);
  fetched.blocks[0].id = {3, 0};
  const absl::Status status = client_->Fetch(absl::MakeSpan(fetched.blocks), {});
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(Message(status), HasSubstr("3/0"));
}

// --- The wire, through the generated stub: what any client in any language sees -------------------------------------------------------

class WireTest : public ::testing::Test {
 protected:
  static BankSpec BigSpec() {
    BankSpec spec = TinySpec();
    spec.widths = {0, 1024};
    spec.layers = 4;
    spec.hidden = 32;  // 1.5 MiB a block: four chunks
    return spec;
  }
  const BankSpec spec_ = BigSpec();
  MemoryCluster cluster_{spec_, 1};
  std::shared_ptr<grpc::Channel> channel_ = (*MakeChannels(cluster_.address(0), {}))[0];
  std::unique_ptr<v1::MemoryService::Stub> stub_ = v1::MemoryService::NewStub(channel_);

  absl::Status Fetch(const v1::FetchBlocksRequest& request, std::vector<v1::FetchChunk>* chunks) {
    grpc::ClientContext context;
    auto reader = stub_->FetchBlocks(&context, request);
    v1::FetchChunk chunk;
    while (reader->Read(&chunk)) chunks->push_back(chunk);
    return FromGrpc(reader->Finish());
  }

  static v1::FetchBlocksRequest Request(std::vector<BlockId> ids) {
    v1::FetchBlocksRequest request;
    for (BlockId id : ids) ToProto(id, request.add_blocks()->mutable_id());
    return request;
  }

  absl::StatusOr<v1::PushAck> Push(const std::vector<v1::PushChunk>& chunks) {
    grpc::ClientContext context;
    v1::PushAck ack;
    auto writer = stub_->PushGradients(&context, &ack);
    for (const v1::PushChunk& chunk : chunks) {
      if (!writer->Write(chunk)) break;
    }
    writer->WritesDone();
    RETURN_IF_ERROR(FromGrpc(writer->Finish()));
    return ack;
  }

  // A push of one block as three plain messages.
  std::vector<v1::PushChunk> OneBlockPush(uint64_t step, BlockId id, float value) {
    const std::vector<float> values(spec_.BlockElements(id.level), value);
    const std::string bytes(reinterpret_cast<const char*>(values.data()), values.size() * 4);
    std::vector<v1::PushChunk> chunks(3);
    v1::PushHeader& push = *chunks[0].mutable_push();
    push.set_run_id("run");
    push.set_epoch(1);
    push.set_step(step);
    push.set_block_count(1);
    v1::GradientHeader& block = *chunks[1].mutable_block();
    ToProto(id, block.mutable_id());
    block.set_dtype(v1::GRADIENT_DTYPE_F32);
    block.set_total_bytes(bytes.size());
    chunks[1].set_data(bytes.substr(0, 100));
    chunks[2].set_crc32c(Crc32c(bytes.data(), bytes.size()));
    chunks[2].set_data(bytes.substr(100));
    return chunks;
  }

  void BeginRun() {
    v1::BeginRunRequest request;
    request.set_run_id("run");
    request.set_epoch(1);
    request.set_world_size(1);
    request.set_first_step(1);
    request.set_optimizer(v1::OPTIMIZER_KIND_SGD);
    request.set_beta1(0.9f);
    request.set_beta2(0.95f);
    request.set_epsilon(1e-8f);
    v1::BeginRunReply reply;
    grpc::ClientContext context;
    ASSERT_OK(FromGrpc(stub_->BeginRun(&context, request, &reply)));
  }
};

TEST_F(WireTest, AGeneratedClientReadsTheRawSlices) {
  std::vector<v1::FetchChunk> chunks;
  ASSERT_OK(Fetch(Request({{2, 3}, {2, 16}}), &chunks));
  ASSERT_EQ(chunks.size(), 6u);  // 1.5 MiB in chunks of 512 KiB, twice
  size_t next = 0;
  for (BlockId id : {BlockId{2, 3}, BlockId{2, 16}}) {
    std::string payload;
    const v1::BlockHeader header = chunks[next].header();
    for (int i = 0; i < 3; ++i) {
      EXPECT_EQ(chunks[next].has_header(), i == 0);
      EXPECT_EQ(chunks[next].data().size(), 512u << 10);
      payload += chunks[next++].data();
    }
    EXPECT_EQ(FromProto(header.id()), id);
    EXPECT_EQ(header.total_bytes(), payload.size());
    EXPECT_EQ(header.crc32c(), Crc32c(payload.data(), payload.size()));
    std::vector<uint8_t> expected(spec_.BlockBytes(2));
    InitBlockPayload(spec_, id, absl::MakeSpan(expected));
    EXPECT_EQ(payload, std::string(expected.begin(), expected.end()));
  }
}

TEST_F(WireTest, BadFetchesAreRefusedWithAReason) {
  struct Case {
    v1::FetchBlocksRequest request;
    absl::StatusCode code;
    const char* reason;
  };
  v1::FetchBlocksRequest level = Request({{9, 0}}), unused = Request({{1, 0}}), cluster = Request({{2, 17}}), many, both = Request({{2, 0}}),
                         hash = Request({{2, 0}}), huge = Request({{2, 0}});
  for (int i = 0; i < 70000; ++i) ToProto(BlockId{2, 0}, many.add_blocks()->mutable_id());
  both.set_bank_version("v");
  both.set_min_step(1);
  hash.set_spec_hash("ffff");
  huge.mutable_blocks(0)->set_if_version_newer_than(UINT64_MAX);
  for (const Case& c : {Case{level, absl::StatusCode::kInvalidArgument, "9/0"}, Case{unused, absl::StatusCode::kInvalidArgument, "1/0"},
                        Case{cluster, absl::StatusCode::kInvalidArgument, "2/17"}, Case{many, absl::StatusCode::kInvalidArgument, "70000"},
                        Case{both, absl::StatusCode::kInvalidArgument, "min_step 1"},
                        Case{hash, absl::StatusCode::kFailedPrecondition, "ffff"}, Case{huge, absl::StatusCode::kInvalidArgument, "2/0"}}) {
    std::vector<v1::FetchChunk> chunks;
    const absl::Status status = Fetch(c.request, &chunks);
    EXPECT_EQ(status.code(), c.code) << status;
    EXPECT_THAT(Message(status), HasSubstr(c.reason));
    EXPECT_TRUE(chunks.empty());
  }
}

TEST_F(WireTest, BytesThatAreNoMessageAreRefused) {
  for (const char* method : {"/membank.v1.MemoryService/FetchBlocks", "/membank.v1.MemoryService/PushGradients"}) {
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(10));
    grpc::ByteBuffer reply;
    const grpc::internal::RpcMethod raw(method, grpc::internal::RpcMethod::CLIENT_STREAMING);
    std::unique_ptr<grpc::ClientWriter<grpc::ByteBuffer>> writer(
        grpc::internal::ClientWriterFactory<grpc::ByteBuffer>::Create(channel_.get(), raw, &context, &reply));
    grpc::Slice slice("\x0a\xff\xff\xff\xff\x0fgarbage");
    writer->Write(grpc::ByteBuffer(&slice, 1));
    writer->WritesDone();
    EXPECT_EQ(writer->Finish().error_code(), grpc::StatusCode::INVALID_ARGUMENT) << method;
  }
}

TEST_F(WireTest, AGeneratedClientPushesAndIsAcknowledgedOnce) {
  BeginRun();
  const auto chunks = OneBlockPush(1, {2, 3}, -5.0f);
  auto ack = Push(chunks);
  ASSERT_OK(ack.status());
  EXPECT_EQ(ack->result(), v1::PUSH_RESULT_ACCEPTED);
  ack = Push(chunks);
  ASSERT_OK(ack.status());
  EXPECT_EQ(ack->result(), v1::PUSH_RESULT_DUPLICATE);
}

TEST_F(WireTest, BrokenPushesAreRefusedAndLeaveNothing) {
  BeginRun();
  const BlockId id{2, 3};
  const auto good = OneBlockPush(1, id, -5.0f);
  const auto expect = [&](std::vector<v1::PushChunk> chunks, absl::StatusCode code, const char* reason) {
    const auto ack = Push(chunks);
    EXPECT_EQ(ack.status().code(), code) << ack.status();
    EXPECT_THAT(Message(ack.status()), HasSubstr(reason));
  };
  auto bad = good;
  (*bad[2].mutable_data())[7] ^= 1;
  expect(bad, absl::StatusCode::kDataLoss, "2/3");
  bad = good;
  bad[2].clear_crc32c();
  bad[1].set_crc32c(good[2].crc32c());
  expect(bad, absl::StatusCode::kInvalidArgument, "the last chunk of block 2/3 has no crc32c");
  bad = good;
  bad.pop_back();
  expect(bad, absl::StatusCode::kInvalidArgument, "0 of 1 blocks, inside of block 2/3");
  bad = good;
  bad[2].set_data(bad[2].data() + "x");
  expect(bad, absl::StatusCode::kInvalidArgument, "more than its");
  bad = good;
  bad[1].mutable_block()->set_total_bytes(uint64_t{1} << 60);
  expect(bad, absl::StatusCode::kInvalidArgument, "2/3");
  bad = good;
  bad[1].mutable_block()->set_dtype(v1::GRADIENT_DTYPE_UNSPECIFIED);
  expect(bad, absl::StatusCode::kInvalidArgument, "2/3");
  bad = good;
  bad[1].mutable_block()->mutable_id()->set_level(5);
  expect(bad, absl::StatusCode::kInvalidArgument, "5/3");
  bad = good;
  bad[0].mutable_push()->set_block_count(2);
  expect(bad, absl::StatusCode::kInvalidArgument, "1 of 2 blocks");
  bad = good;
  bad[0].mutable_push()->set_block_count(UINT32_MAX);
  expect(bad, absl::StatusCode::kInvalidArgument, "4294967295");
  bad = good;
  bad[0].mutable_push()->set_spec_hash("ffff");
  expect(bad, absl::StatusCode::kFailedPrecondition, "ffff");
  expect({good[1], good[2]}, absl::StatusCode::kInvalidArgument, "before the push header");
  expect({good[0], good[2]}, absl::StatusCode::kInvalidArgument, "outside of a block");
  expect({}, absl::StatusCode::kInvalidArgument, "without a push header");
  auto ack = Push(good);  // none of the above counted
  ASSERT_OK(ack.status());
  EXPECT_EQ(ack->result(), v1::PUSH_RESULT_ACCEPTED);
}

TEST_F(WireTest, UnknownEnumsAreRefused) {
  v1::CheckpointRequest checkpoint;
  v1::CheckpointReply checkpoint_reply;
  grpc::ClientContext first, second;
  EXPECT_EQ(stub_->Checkpoint(&first, checkpoint, &checkpoint_reply).error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  v1::BeginRunRequest run;
  run.set_run_id("run");
  v1::BeginRunReply run_reply;
  EXPECT_EQ(stub_->BeginRun(&second, run, &run_reply).error_code(), grpc::StatusCode::INVALID_ARGUMENT);
}

TEST_F(WireTest, AMessageAboveTheLimitIsRefusedAndTheServerGoesOn) {
  v1::PushChunk big;
  big.set_data(std::string(64 << 20, 'x'));
  EXPECT_EQ(Push({big}).status().code(), absl::StatusCode::kResourceExhausted);
  std::vector<v1::FetchChunk> chunks;
  EXPECT_OK(Fetch(Request({{2, 0}}), &chunks));
}

}  // namespace
}  // namespace membank
