// Who may do what (promise P7): every caller makes every call on every kind of block, over mutual TLS with real certificates. The expectations are
// one table; a call of the service that it misses fails the test.
#include <set>

#include "common/base/crc32c.h"
#include "common/client/access_client.h"
#include "common/rpc/channel.h"
#include "common/rpc/wire.h"
#include "gmock/gmock.h"
#include "grpcpp/client_context.h"
#include "memory_server/in_memory_block_store.h"
#include "memory_server/memory_service.h"
#include "tests/testing/certificates.h"
#include "tests/testing/memory_cluster.h"

namespace membank {
namespace {

using testing_support::CertificateAuthority;
using testing_support::ScratchDirectory;
using testing_support::TinySpec;

// Of TinySpec's tree (fan-out 4, 2 levels): nobody's, alice's, bob's, one of alice's that is blocked, and one that is not there.
constexpr struct {
  const char* name;
  BlockId id;
} kBlocks[] = {{"free", {1, 0}}, {"alice's", {1, 1}}, {"bob's", {1, 2}}, {"alice's, blocked", {1, 3}}, {"missing", {3, 0}}};

// A letter per block of kBlocks. o: OK, b: OK and the block comes as blocked, d: PERMISSION_DENIED, f: FAILED_PRECONDITION, i: INVALID_ARGUMENT.
constexpr struct {
  const char* caller;
  const char* fetch;
  const char* push;
  const char* change;   // SetAccess of the block's prefix
  const char* purge;
} kPerBlock[] = {
    {"alice", "oodbi", "oodfi", "dodoi", "dfdoi"},
    {"bob", "ododi", "ododi", "ddodi", "ddfdi"},
    {"rita", "oodbi", "ddddd", "ddddi", "ddddi"},  // reads what is alice's
    {"trainer", "odddi", "odddi", "ddddi", "ddddi"},
    {"admin", "odddi", "odddi", "ooooi", "fffoi"},
    {"stranger", "odddi", "ddddd", "ddddi", "ddddi"},
};

// Calls that are about no block: who may make them. Trainers here are alice, bob and trainer.
const std::map<std::string, std::set<std::string>> kPerCall = {
    {"GetManifest", {"alice", "bob", "rita", "trainer", "admin", "stranger"}},
    {"GetAccess", {"alice", "bob", "rita", "trainer", "admin", "stranger"}},
    {"Prefetch", {"alice", "bob", "trainer", "admin"}},
    {"BeginRun", {"alice", "bob", "trainer", "admin"}},
    {"PrepareStep", {"alice", "bob", "trainer", "admin"}},
    {"ApplyStep", {"alice", "bob", "trainer", "admin"}},
    {"JoinRun", {"alice", "bob", "trainer", "admin"}},
    {"AwaitStep", {"alice", "bob", "trainer", "admin"}},
    {"Checkpoint", {"alice", "bob", "trainer", "admin"}},
    {"Publish", {"admin"}},
    {"ReadCheckpoint", {"admin"}},
    {"WriteCheckpoint", {"admin"}},
    {"GetSlots", {"admin"}},
    {"ExportSlots", {"admin"}},
    {"MoveSlots", {"admin"}},
};
const std::set<std::string> kPerBlockCalls = {"FetchBlocks", "PushGradients", "SetAccess", "PurgeBlocks"};

char Letter(const grpc::Status& status) {
  switch (status.error_code()) {
    case grpc::StatusCode::OK: return 'o';
    case grpc::StatusCode::PERMISSION_DENIED: return 'd';
    case grpc::StatusCode::FAILED_PRECONDITION: return 'f';
    case grpc::StatusCode::INVALID_ARGUMENT: return 'i';
    default: return '?';
  }
}

std::string Name(const std::string& caller) { return "spiffe://membank.test/" + caller; }

class AccessMatrix : public testing::Test {
 protected:
  void SetUp() override {
    ShardOptions options;
    options.data_directory = directory_.path() + "/m0";
    options.server_id = "m0";
    options.open_store = InMemoryBlockStore::Open;
    options.min_free_bytes = 0;
    options.optimizer_threads = 1;
    options.access.administrators = {Name("admin")};
    options.access.trainers = {Name("alice"), Name("bob"), Name("trainer")};
    shard_ = Shard::Open(TinySpec(), *SlotMap::Striped({{"m0", "localhost:0"}}), options).value();
    service_ = std::make_unique<MemoryService>(shard_.get(), 2, 32);
    RpcServerOptions rpc;
    rpc.listen = "localhost:0";
    rpc.tls = authority_.Issue("server", {"DNS:localhost"});
    server_ = RpcServer::Start(rpc, {service_.get()}).value();
    for (const auto& row : kPerBlock) stubs_[row.caller] = Connect(authority_.Issue(row.caller, {"DNS:host.test", "URI:" + Name(row.caller)}));

    AccessTable table;
    table.epoch = 1;
    table.SetOwner({1, 1}, Name("alice"), {Name("rita")});
    table.SetOwner({1, 2}, Name("bob"), {});
    table.SetOwner({1, 3}, Name("alice"), {Name("rita")});
    table.SetBlocked({1, 3}, true);
    ASSERT_EQ(Letter(Set("admin", table)), 'o');
    table_ = table;
    v1::BeginRunRequest begin;
    begin.set_run_id("run");
    begin.set_epoch(1);
    begin.set_world_size(64);
    begin.set_first_step(1);
    begin.set_optimizer(v1::OPTIMIZER_KIND_SGD);
    begin.set_epsilon(1e-8f);
    v1::BeginRunReply begun;
    grpc::ClientContext context;
    const grpc::Status status = stubs_["trainer"]->BeginRun(&context, begin, &begun);
    ASSERT_TRUE(status.ok()) << status.error_message();
  }
  void TearDown() override {
    if (shard_) shard_->Shutdown();
  }

  std::unique_ptr<v1::MemoryService::Stub> Connect(const TlsFiles& tls) {
    ChannelOptions options;
    options.tls = tls;
    return v1::MemoryService::NewStub(MakeChannels(server_->address(), options).value()[0]);
  }

  char Fetch(const std::string& caller, BlockId id) {
    v1::FetchBlocksRequest request;
    ToProto(id, request.add_blocks()->mutable_id());
    grpc::ClientContext context;
    auto reader = stubs_[caller]->FetchBlocks(&context, request);
    v1::FetchChunk chunk;
    bool blocked = false;
    size_t bytes = 0;
    while (reader->Read(&chunk)) {
      blocked |= chunk.header().blocked();
      bytes += chunk.data().size();
    }
    const grpc::Status status = reader->Finish();
    if (!status.ok() || blocked) {
      EXPECT_EQ(bytes, 0u) << caller << " got bytes of " << ToString(id);
    }
    return status.ok() && blocked ? 'b' : Letter(status);
  }

  char Push(const std::string& caller, BlockId id) {
    const std::string data(id.level > 2 ? 8 : TinySpec().BlockBytes(id.level), '\0');
    v1::PushChunk header, block;
    header.mutable_push()->set_run_id("run");
    header.mutable_push()->set_epoch(1);
    header.mutable_push()->set_step(1);
    header.mutable_push()->set_rank(next_rank_++);
    header.mutable_push()->set_block_count(1);
    ToProto(id, block.mutable_block()->mutable_id());
    block.mutable_block()->set_dtype(v1::GRADIENT_DTYPE_F32);
    block.mutable_block()->set_total_bytes(data.size());
    block.set_crc32c(Crc32c(data.data(), data.size()));
    block.set_data(data);
    grpc::ClientContext context;
    v1::PushAck ack;
    auto writer = stubs_[caller]->PushGradients(&context, &ack);
    if (writer->Write(header) && writer->Write(block)) writer->WritesDone();
    return Letter(writer->Finish());
  }

  grpc::Status Set(const std::string& caller, const AccessTable& table) {
    v1::SetAccessRequest request;
    ToProto(table, request.mutable_table());
    v1::SetAccessReply reply;
    grpc::ClientContext context;
    return stubs_[caller]->SetAccess(&context, request, &reply);
  }

  // Gives the prefix one reader more, and takes it back again.
  char Change(const std::string& caller, BlockId id) {
    AccessTable changed = table_;
    AccessRule& rule = changed.rules[{id.level, id.cluster}];
    if (rule.owner.empty()) rule.owner = Name("carol");
    rule.readers.insert("new");
    changed.epoch = ++epoch_;
    const grpc::Status status = Set(caller, changed);
    table_.epoch = ++epoch_;
    EXPECT_EQ(Letter(Set("admin", table_)), 'o');
    return Letter(status);
  }

  char Purge(const std::string& caller, BlockId id) {
    v1::PurgeBlocksRequest request;
    request.mutable_prefix()->set_level(id.level);
    request.mutable_prefix()->set_cluster(id.cluster);
    v1::PurgeBlocksReply reply;
    grpc::ClientContext context;
    return Letter(stubs_[caller]->PurgeBlocks(&context, request, &reply));
  }

  template <typename Request, typename Reply>
  bool MayCall(const std::string& caller, grpc::Status (v1::MemoryService::Stub::*method)(grpc::ClientContext*, const Request&, Reply*)) {
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(10));
    Reply reply;
    return (stubs_[caller].get()->*method)(&context, Request(), &reply).error_code() != grpc::StatusCode::PERMISSION_DENIED;
  }
  bool MayExport(const std::string& caller) {
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(10));
    const auto stream = stubs_[caller]->ExportSlots(&context, {});
    v1::ExportSlotsChunk chunk;
    while (stream->Read(&chunk)) continue;
    return stream->Finish().error_code() != grpc::StatusCode::PERMISSION_DENIED;
  }

  ScratchDirectory directory_;
  CertificateAuthority authority_{directory_.path()};
  std::unique_ptr<Shard> shard_;
  std::unique_ptr<MemoryService> service_;
  std::unique_ptr<RpcServer> server_;
  std::map<std::string, std::unique_ptr<v1::MemoryService::Stub>> stubs_;
  AccessTable table_;
  uint64_t epoch_ = 1;
  uint32_t next_rank_ = 0;
};

TEST_F(AccessMatrix, EveryCallerEveryCallEveryBlock) {
  int cells = 0;
  const auto check = [&](const std::string& caller, const char* call, const char* expected, auto&& make) {
    for (size_t i = 0; i < std::size(kBlocks); ++i, ++cells) {
      EXPECT_EQ(make(caller, kBlocks[i].id), expected[i]) << caller << ": " << call << " of the block that is " << kBlocks[i].name;
    }
  };
  for (const auto& row : kPerBlock) {
    check(row.caller, "FetchBlocks", row.fetch, [&](const std::string& caller, BlockId id) { return Fetch(caller, id); });
    check(row.caller, "PushGradients", row.push, [&](const std::string& caller, BlockId id) { return Push(caller, id); });
    check(row.caller, "SetAccess", row.change, [&](const std::string& caller, BlockId id) { return Change(caller, id); });
  }
  for (const auto& row : kPerBlock) {  // last: a purge ends the run
    check(row.caller, "PurgeBlocks", row.purge, [&](const std::string& caller, BlockId id) { return Purge(caller, id); });
  }
  using Stub = v1::MemoryService::Stub;
  for (const auto& row : kPerBlock) {
    const std::string caller = row.caller;
    const auto check_call = [&](const std::string& call, bool may) {
      ASSERT_TRUE(kPerCall.contains(call)) << call;
      EXPECT_EQ(may, kPerCall.at(call).contains(caller)) << caller << ": " << call;
      ++cells;
    };
    check_call("GetManifest", MayCall(caller, &Stub::GetManifest));
    check_call("GetAccess", MayCall(caller, &Stub::GetAccess));
    check_call("Prefetch", MayCall(caller, &Stub::Prefetch));
    check_call("BeginRun", MayCall(caller, &Stub::BeginRun));
    check_call("PrepareStep", MayCall(caller, &Stub::PrepareStep));
    check_call("ApplyStep", MayCall(caller, &Stub::ApplyStep));
    check_call("JoinRun", MayCall(caller, &Stub::JoinRun));
    check_call("AwaitStep", MayCall(caller, &Stub::AwaitStep));
    check_call("Checkpoint", MayCall(caller, &Stub::Checkpoint));
    check_call("Publish", MayCall(caller, &Stub::Publish));
    check_call("ReadCheckpoint", MayCall(caller, &Stub::ReadCheckpoint));
    check_call("WriteCheckpoint", MayCall(caller, &Stub::WriteCheckpoint));
    check_call("GetSlots", MayCall(caller, &Stub::GetSlots));
    check_call("ExportSlots", MayExport(caller));
    check_call("MoveSlots", MayCall(caller, &Stub::MoveSlots));
  }
  std::printf("%d cells of role x call x block\n", cells);
}

TEST_F(AccessMatrix, TheTableMissesNoCall) {
  const auto* service = v1::Manifest::descriptor()->file()->service(0);
  for (int i = 0; i < service->method_count(); ++i) {
    const std::string name = service->method(i)->name();
    EXPECT_TRUE(kPerCall.contains(name) != kPerBlockCalls.contains(name)) << name << " needs one row in this test's table";
  }
}

TEST_F(AccessMatrix, NoCertificateNoCall) {
  CertificateAuthority other(directory_.path(), "other-authority");
  TlsFiles stranger = other.Issue("impostor", {"URI:" + Name("admin")});
  stranger.authority = authority_.file();
  const TlsFiles expired = authority_.Issue("expired", {"URI:" + Name("admin")}, -10);
  for (const auto& [what, tls] : {std::pair{"of another authority", stranger}, {"none", TlsFiles{"", "", authority_.file()}}, {"plain text", TlsFiles()}}) {
    grpc::ClientContext context;
    v1::Manifest manifest;
    EXPECT_EQ(Connect(tls)->GetManifest(&context, {}, &manifest).error_code(), grpc::StatusCode::UNAVAILABLE) << what;
  }
  EXPECT_FALSE(ClientCredentials(expired).ok());
}

TEST_F(AccessMatrix, TheTableOutlivesTheServer) {
  server_.reset();
  service_.reset();
  shard_.reset();
  const auto reopened = AccessControl::Open(directory_.path() + "/m0", 4, 2, {});
  ASSERT_TRUE(reopened.ok()) << reopened.status();
  EXPECT_EQ(*(*reopened)->table(), table_);
  const std::string whole = *ReadFile(directory_.path() + "/m0/access.json");
  ASSERT_TRUE(WriteFileAtomic(directory_.path() + "/m0/access.json", "{\"epoch\": 3").ok());
  EXPECT_EQ(AccessControl::Open(directory_.path() + "/m0", 4, 2, {}).status().code(), absl::StatusCode::kDataLoss);
  const std::string file = directory_.path() + "/m0/access.json";
  std::string other_owner = whole;
  other_owner.replace(other_owner.find("alice"), 5, "malle");
  ASSERT_TRUE(WriteFileAtomic(file, other_owner).ok());
  EXPECT_THAT(std::string(AccessControl::Open(directory_.path() + "/m0", 4, 2, {}).status().message()), testing::HasSubstr("its CRC32C is"));
}

// Without TLS everybody is anonymous: may administer what nobody owns, and nothing that somebody owns.
TEST(AccessWithoutTls, AnonymousCallersOwnNothing) {
  testing_support::MemoryCluster cluster(TinySpec(), 2);
  MemoryClientOptions options;
  options.slot_map_path = cluster.slot_map_path();
  const auto access = AccessClient::Create(options);
  ASSERT_TRUE(access.ok()) << access.status();
  const auto set = [&](TreePrefix prefix, const std::string& owner, bool blocked) {
    return (*access)->Change([&](const BankSpec&, AccessTable* table) {
      table->SetOwner(prefix, owner, {});
      table->SetBlocked(prefix, blocked);
      return absl::OkStatus();
    }).status();
  };
  EXPECT_TRUE(set({1, 0}, "", true).ok());
  EXPECT_TRUE(set({1, 0}, "", false).ok());
  EXPECT_TRUE(set({2, 6}, "spiffe://x/alice", false).ok());
  EXPECT_EQ(set({2, 6}, "", false).code(), absl::StatusCode::kPermissionDenied);
  EXPECT_EQ(set({1, 1}, "", true).code(), absl::StatusCode::kPermissionDenied) << "alice's lies below";
  EXPECT_EQ(set({0, 0}, "mallory", false).code(), absl::StatusCode::kPermissionDenied);

  const auto client = cluster.Connect();
  std::vector<uint8_t> bytes(TinySpec().BlockBytes(2));
  BlockFetch owned{{2, 6}, absl::MakeSpan(bytes)}, free{{2, 7}, absl::MakeSpan(bytes)};
  EXPECT_TRUE(client->Fetch(absl::MakeSpan(&free, 1), {}).ok());
  const absl::Status denied = client->Fetch(absl::MakeSpan(&owned, 1), {});
  EXPECT_EQ(denied.code(), absl::StatusCode::kPermissionDenied);
  EXPECT_THAT(std::string(denied.message()), testing::HasSubstr("block 2/6 is owned; an anonymous caller"));
}

TEST(AccessWithoutTls, AServerThatMissedAChangeCatchesUpWithTheNext) {
  testing_support::MemoryCluster cluster(TinySpec(), 2);
  AccessTable alone;
  alone.epoch = 4;
  alone.SetBlocked({1, 2}, true);
  ASSERT_TRUE(cluster.shard(1).access().Replace({}, alone).ok());
  EXPECT_EQ(cluster.shard(1).access().Replace({}, AccessTable{3, {}}).code(), absl::StatusCode::kAborted);
  MemoryClientOptions options;
  options.slot_map_path = cluster.slot_map_path();
  const auto access = AccessClient::Create(options);
  const auto table = (*access)->Change([](const BankSpec&, AccessTable*) { return absl::OkStatus(); });
  ASSERT_TRUE(table.ok()) << table.status();
  EXPECT_EQ(table->epoch, 5u);
  for (int i = 0; i < 2; ++i) EXPECT_EQ(*cluster.shard(i).access().table(), *table);
}

// A blocked block comes as zeros to whoever may read it.
TEST(AccessWithoutTls, BlockedBlocksAreZeros) {
  testing_support::MemoryCluster cluster(TinySpec(), 2);
  const auto client = cluster.Connect();
  AccessTable table;
  table.epoch = 1;
  table.SetBlocked({1, 2}, true);
  for (int i = 0; i < 2; ++i) ASSERT_TRUE(cluster.shard(i).access().Replace({}, table).ok());
  std::vector<uint8_t> child(TinySpec().BlockBytes(2), 1), sibling = child;
  BlockFetch blocks[] = {{{2, 9}, absl::MakeSpan(child)}, {{2, 12}, absl::MakeSpan(sibling)}};
  blocks[0].newer_than = 0;  // a blocked block is never "unchanged"
  ASSERT_TRUE(client->Fetch(absl::MakeSpan(blocks), {}).ok());
  EXPECT_TRUE(blocks[0].blocked);
  EXPECT_FALSE(blocks[0].unchanged);
  EXPECT_THAT(child, testing::Each(0));
  EXPECT_FALSE(blocks[1].blocked);
  EXPECT_THAT(sibling, testing::Not(testing::Each(1)));
}

}  // namespace
}  // namespace membank
