#include <chrono>
#include <memory>

#include "common/rpc/raw_message.h"
#include "common/rpc/status.h"
#include "common/rpc/wire.h"
#include "grpcpp/generic/generic_stub.h"
#include "grpcpp/server.h"
#include "grpcpp/server_builder.h"
#include "memory_server/in_memory_block_store.h"
#include "memory_server/memory_service.h"
#include "tests/fuzz/fuzz_target.h"

namespace membank::fuzz {
namespace {

grpc::ByteBuffer ToBuffer(std::string_view bytes, size_t slice_bytes) {
  std::vector<grpc::Slice> slices;
  for (size_t at = 0; at < bytes.size(); at += slice_bytes) {
    const std::string_view part = bytes.substr(at, slice_bytes);
    slices.emplace_back(part.data(), part.size());
  }
  return grpc::ByteBuffer(slices.data(), slices.size());
}

// A byte that cuts the message into slices, then the message.
void RunRawMessage(std::string_view input) {
  Pieces pieces(input);
  const size_t slice = 1 + pieces.Byte();
  const std::string_view bytes = pieces.Rest();
  uint64_t bulk_bytes = 0;
  (void)ParseRawMessage(
      ToBuffer(bytes, slice), v1::FetchChunk::kDataFieldNumber, [](uint32_t, const std::string&) { return absl::OkStatus(); },
      [&](absl::Span<const uint8_t> piece) {
        bulk_bytes += piece.size();
        return absl::OkStatus();
      }).ok();
  if (bulk_bytes > bytes.size()) __builtin_trap();
  v1::BankSpec spec;
  if (spec.ParseFromArray(bytes.data(), static_cast<int>(bytes.size()))) (void)FromProto(spec).ok();
  v1::BlockPath path;
  if (path.ParseFromArray(bytes.data(), static_cast<int>(bytes.size()))) (void)FromProto(path).ok();
}

std::vector<std::string> RawMessageSeeds() {
  v1::FetchChunk chunk;
  chunk.mutable_header()->mutable_id()->set_level(1);
  chunk.mutable_header()->set_total_bytes(5);
  chunk.set_data("hello");
  v1::BankSpec spec;
  spec.set_bank_id("b");
  spec.add_widths(8);
  spec.set_layers(2);
  return {"\x7f" + chunk.SerializeAsString(), std::string("\0", 1) + chunk.SerializeAsString(), "\x7f" + spec.SerializeAsString()};
}

void RunStatusDetails(std::string_view input) {
  const absl::Status status = FromGrpc(grpc::Status(grpc::StatusCode::FAILED_PRECONDITION, "m", std::string(input)), "peer");
  (void)WrongSlotEpoch(status);
  (void)ToGrpc(status);
}

std::vector<std::string> StatusDetailsSeeds() {
  absl::Status status = absl::FailedPreconditionError("x");
  AddWrongSlot("m0", 3, {1, 2}, &status);
  return {ToGrpc(status).error_details()};
}

// A memory server in this process.
class Server {
 public:
  Server() {
    spec_.bank_id = "tiny";
    spec_.fan_out = 4;
    spec_.widths = {8, 4};
    spec_.layers = 2;
    spec_.hidden = 16;
    spec_.dtype = DType::kF32;
    spec_.anchor_fingerprint = "aa";
    spec_.tree_fingerprint = "bb";
    ShardOptions options;
    options.data_directory = ScratchDirectory() + "/service";
    options.server_id = "m0";
    options.open_store = InMemoryBlockStore::Open;
    options.min_free_bytes = 0;
    options.optimizer_threads = 1;
    shard_ = Shard::Open(spec_, *SlotMap::Striped({{"m0", "x"}}), options).value();
    service_ = std::make_unique<MemoryService>(shard_.get(), 1, 8);
    grpc::ServerBuilder builder;
    builder.RegisterService(service_.get());
    builder.SetMaxReceiveMessageSize(8 << 20);
    server_ = builder.BuildAndStart();
    stub_ = std::make_unique<grpc::GenericStub>(server_->InProcessChannel({}));
  }
  ~Server() {
    shard_->Shutdown();
    server_->Shutdown(std::chrono::system_clock::now());
  }

  // The messages of one call, whatever they are; waits for the status.
  void Call(const std::string& method, const std::vector<grpc::ByteBuffer>& messages) {
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + std::chrono::milliseconds(50));  // an endless wait is one of the answers
    grpc::CompletionQueue queue;
    auto call = stub_->PrepareCall(&context, "/membank.v1.MemoryService/" + method, &queue);
    void* tag = nullptr;
    bool ok = false;
    const auto wait = [&] { return queue.Next(&tag, &ok) && ok; };
    call->StartCall(nullptr);
    bool open = wait();
    for (const grpc::ByteBuffer& message : messages) {
      if (!open) break;
      call->Write(message, nullptr);
      open = wait();
    }
    if (open) {
      call->WritesDone(nullptr);
      open = wait();
    }
    grpc::ByteBuffer reply;
    while (open) {
      call->Read(&reply, nullptr);
      open = wait();
    }
    grpc::Status status;
    call->Finish(&status, nullptr);
    wait();
    queue.Shutdown();
    while (queue.Next(&tag, &ok)) {
    }
  }

 private:
  BankSpec spec_;
  std::unique_ptr<Shard> shard_;
  std::unique_ptr<MemoryService> service_;
  std::unique_ptr<grpc::Server> server_;
  std::unique_ptr<grpc::GenericStub> stub_;
};

std::vector<std::string> Methods() {
  std::vector<std::string> names;
  const auto* service = v1::FetchBlocksRequest::descriptor()->file()->service(0);
  for (int i = 0; i < service->method_count(); ++i) names.push_back(service->method(i)->name());
  return names;
}

// A byte that chooses the call, then its messages.
void RunMemoryService(std::string_view input) {
  static Server& server = *new Server;  // its threads live as long as the process
  static const std::vector<std::string> methods = Methods();
  Pieces pieces(input);
  const std::string& method = methods[pieces.Byte() % methods.size()];
  std::vector<grpc::ByteBuffer> messages;
  while (!pieces.empty() && messages.size() < 8) messages.push_back(ToBuffer(pieces.Piece(), 64));
  server.Call(method, messages);
}

std::string CallOf(const std::string& method, const std::vector<std::string>& messages) {
  const std::vector<std::string> methods = Methods();
  std::string input(1, static_cast<char>(std::find(methods.begin(), methods.end(), method) - methods.begin()));
  for (const std::string& message : messages) input += MakePiece(message);
  return input;
}

std::vector<std::string> MemoryServiceSeeds() {
  v1::FetchBlocksRequest fetch;
  fetch.add_blocks()->mutable_id()->set_level(1);
  fetch.add_blocks()->mutable_id()->set_level(2);
  fetch.mutable_blocks(1)->set_if_version_newer_than(0);
  v1::BeginRunRequest begin;
  begin.set_run_id("r");
  begin.set_epoch(1);
  begin.set_world_size(1);
  begin.set_first_step(1);
  begin.set_optimizer(v1::OPTIMIZER_KIND_SGD);
  v1::PushChunk header, block;
  header.mutable_push()->set_run_id("r");
  header.mutable_push()->set_epoch(1);
  header.mutable_push()->set_step(1);
  header.mutable_push()->set_block_count(1);
  block.mutable_block()->mutable_id()->set_level(2);
  block.mutable_block()->mutable_id()->set_cluster(3);
  block.mutable_block()->set_dtype(v1::GRADIENT_DTYPE_BF16);
  block.mutable_block()->set_total_bytes(3 * 2 * 16 * 4 * 2);
  block.set_crc32c(0x3a3b3d06);
  block.set_data(std::string(block.block().total_bytes(), '\0'));
  v1::CheckpointRequest checkpoint;
  checkpoint.set_action(v1::CHECKPOINT_ACTION_LIST);
  v1::PublishRequest publish;
  publish.set_checkpoint_id("c");
  publish.set_version("v");
  v1::PrepareStepRequest prepare;
  prepare.mutable_step()->set_run_id("r");
  prepare.mutable_step()->set_step(1);
  v1::ApplyStepRequest apply;
  apply.mutable_step()->set_run_id("r");
  apply.set_scale(1);
  return {CallOf("GetManifest", {""}),
          CallOf("FetchBlocks", {fetch.SerializeAsString()}),
          CallOf("BeginRun", {begin.SerializeAsString()}),
          CallOf("PushGradients", {header.SerializeAsString(), block.SerializeAsString()}),
          CallOf("Checkpoint", {checkpoint.SerializeAsString()}),
          CallOf("Publish", {publish.SerializeAsString()}),
          CallOf("PrepareStep", {prepare.SerializeAsString()}),
          CallOf("ApplyStep", {apply.SerializeAsString()})};
}

}  // namespace

std::vector<Target> WireTargets() {
  return {{"raw_message", RunRawMessage, RawMessageSeeds}, {"status_details", RunStatusDetails, StatusDetailsSeeds},
          {"memory_service", RunMemoryService, MemoryServiceSeeds}};
}

}  // namespace membank::fuzz
