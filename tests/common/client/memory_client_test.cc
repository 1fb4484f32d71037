// The client against a server that misbehaves: damages bytes, dies, comes late.
#include "common/client/memory_client.h"

#include <atomic>
#include <thread>

#include "common/base/crc32c.h"
#include "common/rpc/server.h"
#include "common/rpc/status.h"
#include "common/rpc/wire.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "membank/v1/memory.grpc.pb.h"

namespace membank {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

BankSpec Spec() {
  BankSpec spec;
  spec.bank_id = "tiny";
  spec.fan_out = 4;
  spec.widths = {8};
  spec.layers = 2;
  spec.hidden = 16;
  spec.dtype = DType::kF32;
  spec.anchor_fingerprint = "aa";
  spec.tree_fingerprint = "bb";
  return spec;
}

// Written with protobuf alone, unlike the real server: payload byte i of cluster c is i + c. Calls with a number below `faulty_calls` get
// the fault.
class FaultyServer final : public v1::MemoryService::Service {
 public:
  enum class Fault { kNone, kFlippedBit, kWrongBlock, kTooLong, kTooShort, kDies, kWrongSize, kOtherForm, kRefusesPush };

  grpc::Status GetManifest(grpc::ServerContext*, const v1::GetManifestRequest*, v1::Manifest* reply) override {
    ++manifests;
    reply->set_wire_version(wire_version);
    ToProto(Spec(), reply->mutable_spec());
    reply->set_spec_hash(Spec().Hash());
    reply->set_slot_map_epoch(1);
    return grpc::Status::OK;
  }

  grpc::Status FetchBlocks(grpc::ServerContext*, const v1::FetchBlocksRequest* request, grpc::ServerWriter<v1::FetchChunk>* writer) override {
    const Fault now = calls++ < faulty_calls ? fault : Fault::kNone;
    blocks += request->blocks_size();
    for (const auto& block : request->blocks()) {
      std::string payload(Spec().BlockBytes(1), '\0');
      for (size_t i = 0; i < payload.size(); ++i) payload[i] = static_cast<char>(i + block.id().cluster());
      v1::FetchChunk first, second;
      *first.mutable_header()->mutable_id() = block.id();
      first.mutable_header()->set_crc32c(Crc32c(payload.data(), payload.size()));
      first.mutable_header()->set_total_bytes(payload.size());
      const bool target = block.id().cluster() == 2;
      if (target && now == Fault::kFlippedBit) payload[payload.size() / 2] ^= 4;
      if (target && now == Fault::kWrongBlock) first.mutable_header()->mutable_id()->set_cluster(1);
      if (target && now == Fault::kTooLong) payload += "x";
      if (target && now == Fault::kTooShort) payload.pop_back();
      if (target && now == Fault::kWrongSize) first.mutable_header()->set_total_bytes(3);
      if (target && now == Fault::kOtherForm) first.mutable_header()->set_payload(v1::PAYLOAD_TYPE_I8_ROWS);
      first.set_data(payload.substr(0, 1000));
      second.set_data(payload.substr(1000));
      writer->Write(first);
      if (target && now == Fault::kDies) return grpc::Status(grpc::StatusCode::UNAVAILABLE, "going down");
      writer->Write(second);
    }
    return grpc::Status::OK;
  }

  grpc::Status PushGradients(grpc::ServerContext*, grpc::ServerReader<v1::PushChunk>* reader, v1::PushAck* ack) override {
    const bool refuse = calls++ < faulty_calls;
    v1::PushChunk chunk;
    if (refuse) return grpc::Status(grpc::StatusCode::DATA_LOSS, "a bit flipped");  // in the middle of the client's writing
    while (reader->Read(&chunk)) pushed += chunk.data().size();
    ack->set_result(push_result);
    return grpc::Status::OK;
  }

  Fault fault = Fault::kNone;
  int faulty_calls = 0;
  uint32_t wire_version = kWireVersion;
  v1::PushResult push_result = v1::PUSH_RESULT_ACCEPTED;
  std::atomic<int> calls{0}, manifests{0}, blocks{0};
  std::atomic<uint64_t> pushed{0};
};

using Fault = FaultyServer::Fault;

class MemoryClientTest : public ::testing::Test {
 protected:
  void SetUp() override {
    server_ = *RpcServer::Start({}, {&service_});
    address_ = server_->address();
  }

  MemoryClientOptions Options() const {
    MemoryClientOptions options;
    options.servers = {address_};
    options.channels_per_server = 1;
    options.connect_timeout = std::chrono::seconds(10);
    return options;
  }

  std::unique_ptr<MemoryClient> Connect() {
    auto client = MemoryClient::Connect(Options());
    EXPECT_TRUE(client.ok()) << client.status();
    return client.ok() ? *std::move(client) : nullptr;
  }

  // Fetches clusters 0..3.
  absl::Status Fetch(MemoryClient& client, std::chrono::milliseconds timeout = std::chrono::seconds(10)) {
    payloads_.assign(4, std::vector<uint8_t>(Spec().BlockBytes(1)));
    std::vector<BlockFetch> blocks;
    for (uint32_t i = 0; i < 4; ++i) blocks.push_back({{1, i}, absl::MakeSpan(payloads_[i])});
    FetchOptions options;
    options.timeout = timeout;
    return client.Fetch(absl::MakeSpan(blocks), options);
  }

  void ExpectPayloads() {
    for (size_t c = 0; c < payloads_.size(); ++c) {
      for (size_t i = 0; i < payloads_[c].size(); ++i) ASSERT_EQ(payloads_[c][i], static_cast<uint8_t>(i + c));
    }
  }

  FaultyServer service_;
  std::unique_ptr<RpcServer> server_;
  std::string address_;
  std::vector<std::vector<uint8_t>> payloads_;
};

TEST_F(MemoryClientTest, ReadsAServerWrittenWithPlainProtobuf) {
  auto client = Connect();
  const absl::Status status = Fetch(*client);
  ASSERT_TRUE(status.ok()) << status;
  ExpectPayloads();
  EXPECT_EQ(service_.calls, 1);
  EXPECT_EQ(client->traffic().fetched_bytes, 4 * Spec().BlockBytes(1));
}

TEST_F(MemoryClientTest, AFlippedBitIsFetchedOnceMore) {
  service_.fault = Fault::kFlippedBit;
  service_.faulty_calls = 1;
  auto client = Connect();
  const absl::Status status = Fetch(*client);
  ASSERT_TRUE(status.ok()) << status;
  ExpectPayloads();
  EXPECT_EQ(service_.calls, 2);
  EXPECT_EQ(service_.blocks, 5);  // only the damaged block came again
}

TEST_F(MemoryClientTest, ABitThatStaysFlippedIsDataLossNamingTheBlock) {
  service_.fault = Fault::kFlippedBit;
  service_.faulty_calls = 1000;
  auto client = Connect();
  const absl::Status status = Fetch(*client);
  EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(std::string(status.message()), AllOf(HasSubstr("1/2"), HasSubstr(address_)));
  EXPECT_EQ(service_.calls, 2);
}

TEST_F(MemoryClientTest, AnAnswerThatDoesNotFitTheQuestionIsDataLoss) {
  auto client = Connect();
  service_.faulty_calls = 1000;
  for (Fault fault : {Fault::kWrongBlock, Fault::kTooLong, Fault::kTooShort, Fault::kWrongSize}) {
    service_.fault = fault;
    const absl::Status status = Fetch(*client);
    EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss) << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr(address_));
  }
}

TEST_F(MemoryClientTest, AnAnswerInAnotherFormIsRefused) {
  auto client = Connect();
  service_.faulty_calls = 1000;
  service_.fault = Fault::kOtherForm;
  const absl::Status status = Fetch(*client);
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr("block 1/2 comes as int8, which this caller does not read"));
}

TEST_F(MemoryClientTest, AServerThatGoesAwayInTheMiddleIsAskedAgainForTheRest) {
  service_.fault = Fault::kDies;
  service_.faulty_calls = 3;
  auto client = Connect();
  const absl::Status status = Fetch(*client);
  ASSERT_TRUE(status.ok()) << status;
  ExpectPayloads();
  EXPECT_EQ(service_.calls, 4);
  EXPECT_EQ(service_.blocks, 4 + 2 + 2 + 2);  // clusters 0 and 1 came in the first call
}

TEST_F(MemoryClientTest, AServerThatStaysAwayIsUnavailableAtTheDeadline) {
  auto client = Connect();
  server_->Shutdown(std::chrono::milliseconds(0));
  const auto start = std::chrono::steady_clock::now();
  const absl::Status status = Fetch(*client, std::chrono::milliseconds(700));
  EXPECT_TRUE(status.code() == absl::StatusCode::kUnavailable || status.code() == absl::StatusCode::kDeadlineExceeded) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr(address_));
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(5));
}

TEST_F(MemoryClientTest, AServerThatRestartsIsSurvived) {
  auto client = Connect();
  ASSERT_TRUE(Fetch(*client).ok());
  server_.reset();
  std::thread restart([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(400));
    RpcServerOptions options;
    options.listen = address_;
    server_ = *RpcServer::Start(options, {&service_});
  });
  const absl::Status status = Fetch(*client);
  restart.join();
  ASSERT_TRUE(status.ok()) << status;
  ExpectPayloads();
}

TEST_F(MemoryClientTest, ConnectWaitsForALateServer) {
  server_.reset();
  std::thread late([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(400));
    RpcServerOptions options;
    options.listen = address_;
    server_ = *RpcServer::Start(options, {&service_});
  });
  auto client = Connect();
  late.join();
  EXPECT_NE(client, nullptr);
}

TEST_F(MemoryClientTest, ConnectRefusesWhatItDoesNotUnderstand) {
  service_.wire_version = 99;
  const auto client = MemoryClient::Connect(Options());
  EXPECT_EQ(client.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(client.status().message()), HasSubstr("99"));
  MemoryClientOptions none, both = Options(), channels = Options();
  both.slot_map_path = "/some/file";
  channels.channels_per_server = 0;
  for (const MemoryClientOptions& options : {none, both, channels}) {
    EXPECT_EQ(MemoryClient::Connect(options).status().code(), absl::StatusCode::kInvalidArgument);
  }
}

TEST_F(MemoryClientTest, APushRefusedAsDamagedIsSentOnceMore) {
  service_.faulty_calls = 1;
  auto client = Connect();
  std::vector<float> values(Spec().BlockElements(1), 1.0f);
  const BlockGradient gradient{{1, 2}, DType::kF32, absl::MakeConstSpan(reinterpret_cast<const uint8_t*>(values.data()), values.size() * 4)};
  const absl::Status status = client->Push({"run", 1, 1}, 0, {&gradient, 1});
  ASSERT_TRUE(status.ok()) << status;
  EXPECT_EQ(service_.calls, 2);
  EXPECT_EQ(service_.pushed, values.size() * 4);
  service_.calls = 0;
  service_.faulty_calls = 1000;
  EXPECT_EQ(client->Push({"run", 1, 1}, 0, {&gradient, 1}).code(), absl::StatusCode::kDataLoss);
  EXPECT_EQ(service_.calls, 2);
}

TEST_F(MemoryClientTest, AStalePushIsAnErrorAndADuplicateIsNot) {
  auto client = Connect();
  service_.push_result = v1::PUSH_RESULT_DUPLICATE;
  EXPECT_TRUE(client->Push({"run", 1, 1}, 0, {}).ok());
  service_.push_result = v1::PUSH_RESULT_STALE;
  EXPECT_EQ(client->Push({"run", 1, 1}, 0, {}).code(), absl::StatusCode::kFailedPrecondition);
}

}  // namespace
}  // namespace membank
