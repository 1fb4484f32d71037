#include "common/client/block_streams.h"

#include <algorithm>

#include "absl/synchronization/mutex.h"
#include "common/bank/gradient_codec.h"
#include "common/base/crc32c.h"
#include "common/base/status_macros.h"
#include "common/rpc/checked_copy.h"
#include "common/rpc/raw_message.h"
#include "common/rpc/status.h"
#include "common/rpc/wire.h"
#include "grpcpp/client_context.h"
#include "grpcpp/impl/codegen/proto_utils.h"
#include "grpcpp/support/sync_stream.h"

namespace membank {
namespace {

using grpc::internal::RpcMethod;

constexpr char kFetchMethod[] = "/membank.v1.MemoryService/FetchBlocks";
constexpr char kPushMethod[] = "/membank.v1.MemoryService/PushGradients";

std::chrono::system_clock::time_point GrpcDeadline(absl::Time deadline) { return absl::ToChronoTime(deadline); }

// Follows the chunks of one answer: header, payload, header, payload... in request order.
class FetchReceiver {
 public:
  explicit FetchReceiver(std::vector<FetchTask*> tasks) : tasks_(std::move(tasks)) {}

  absl::Status Receive(const grpc::ByteBuffer& message) {
    return ParseRawMessage(
        message, v1::FetchChunk::kDataFieldNumber,
        [this](uint32_t field, const std::string& bytes) {
          return field == v1::FetchChunk::kHeaderFieldNumber ? BeginBlock(bytes) : absl::OkStatus();
        },
        [this](absl::Span<const uint8_t> piece) { return Append(piece); });
  }

  // The stream ended well; did it hold everything?
  absl::Status Finish() const {
    if (in_block_) return DataLoss("the stream ended after {} of {} bytes of block {}", copy_.received(), copy_.size(), Current());
    if (next_ < tasks_.size()) return DataLoss("the stream ended before block {}", ToString(tasks_[next_]->block->id));
    return absl::OkStatus();
  }

 private:
  std::string Current() const { return ToString(task_->block->id); }

  absl::Status BeginBlock(const std::string& bytes) {
    if (in_block_) return DataLoss("the next block began after {} of {} bytes of block {}", copy_.received(), copy_.size(), Current());
    if (!header_.ParseFromString(bytes)) return DataLoss("a block header is no BlockHeader message");
    const BlockId id = FromProto(header_.id());
    if (next_ == tasks_.size()) return DataLoss("block {} came unasked, after the last one", ToString(id));
    task_ = tasks_[next_++];
    BlockFetch& block = *task_->block;
    if (id != block.id) return DataLoss("block {} came where block {} was due", ToString(id), ToString(block.id));
    block.version = header_.version();
    block.unchanged = header_.unchanged();
    block.blocked = header_.blocked();
    if (block.blocked) {
      std::fill(block.destination.begin(), block.destination.end(), uint8_t{0});
      task_->done = true;
      return absl::OkStatus();
    }
    if (block.unchanged) {
      if (block.newer_than < 0) return DataLoss("block {} came as unchanged, which was not asked for", Current());
      task_->done = true;
      return absl::OkStatus();
    }
    ASSIGN_OR_RETURN(block.payload, FromProto(header_.payload()));
    if (block.payload == PayloadType::kI8Rows && task_->int8_bytes == 0)
      return FailedPrecondition("block {} comes as int8, which this caller does not read; name a version that was not published as int8", Current());
    const uint64_t expected = block.payload == PayloadType::kI8Rows ? task_->int8_bytes : block.destination.size();
    if (header_.total_bytes() != expected || expected > block.destination.size()) {
      return DataLoss("block {} has {} bytes on the server, its size here is {}", Current(), header_.total_bytes(), expected);
    }
    copy_ = CheckedCopy(block.destination.subspan(0, expected));
    in_block_ = true;
    return absl::OkStatus();
  }

  absl::Status Append(absl::Span<const uint8_t> piece) {
    if (!in_block_) return DataLoss("{} bytes of data came outside of a block", piece.size());
    if (!copy_.Append(piece)) return DataLoss("block {} got more than its {} bytes", Current(), copy_.size());
    if (copy_.complete()) EndBlock();
    return absl::OkStatus();
  }

  void EndBlock() {
    in_block_ = false;
    task_->corrupt = copy_.crc() != header_.crc32c();
    task_->done = !task_->corrupt;
  }

  const std::vector<FetchTask*> tasks_;
  size_t next_ = 0;
  FetchTask* task_ = nullptr;
  v1::BlockHeader header_;
  bool in_block_ = false;
  CheckedCopy copy_;
};

// Counts slices that gRPC still borrows: it may hold them after the call has ended, until the socket has let go of them.
class Loans {
 public:
  std::shared_ptr<const void> Take() {
    absl::MutexLock lock(&mu_);
    ++count_;
    return std::shared_ptr<const void>(this, [](const void* p) { static_cast<Loans*>(const_cast<void*>(p))->Return(); });
  }
  void AwaitAll() {
    absl::MutexLock lock(&mu_);
    mu_.Await(absl::Condition(+[](int* count) { return *count == 0; }, &count_));
  }

 private:
  void Return() {
    absl::MutexLock lock(&mu_);
    --count_;
  }
  absl::Mutex mu_;
  int count_ ABSL_GUARDED_BY(mu_) = 0;
};

grpc::ByteBuffer SmallMessage(const v1::PushChunk& chunk) { return MakeRawMessage(chunk.SerializeAsString(), 0, {}, nullptr); }

// False when the server ended the call; Finish then says why.
bool WriteGradient(grpc::ClientWriter<grpc::ByteBuffer>& writer, const BlockGradient& gradient, Loans& loans) {
  v1::PushChunk first;
  ToProto(gradient.id, first.mutable_block()->mutable_id());
  first.mutable_block()->set_dtype(gradient.dtype == kI8Rows ? v1::GRADIENT_DTYPE_I8_ROWS
                                   : gradient.dtype == DType::kBF16 ? v1::GRADIENT_DTYPE_BF16 : v1::GRADIENT_DTYPE_F32);
  first.mutable_block()->set_total_bytes(gradient.bytes.size());
  std::string head = first.SerializeAsString();
  uint32_t crc = 0;
  for (size_t begin = 0; begin == 0 || begin < gradient.bytes.size(); begin += kChunkBytes) {
    const auto chunk = gradient.bytes.subspan(begin, kChunkBytes);
    crc = ExtendCrc32c(crc, chunk.data(), chunk.size());  // now in the cache that it is sent from
    if (begin + chunk.size() == gradient.bytes.size()) {
      v1::PushChunk last;
      last.set_crc32c(crc);
      head += last.SerializeAsString();
    }
    if (!writer.Write(MakeRawMessage(head, v1::PushChunk::kDataFieldNumber, chunk, loans.Take()))) return false;
    head.clear();
  }
  return true;
}

}  // namespace

absl::Status RunFetchStream(grpc::Channel& channel, const v1::FetchBlocksRequest& common, absl::Span<FetchTask* const> tasks,
                            absl::Time deadline, bool wait) {
  v1::FetchBlocksRequest request = common;
  std::vector<FetchTask*> wanted;
  for (FetchTask* task : tasks) {
    if (task->done) continue;
    task->corrupt = false;
    wanted.push_back(task);
    auto* block = request.add_blocks();
    ToProto(task->block->id, block->mutable_id());
    if (task->block->newer_than >= 0) block->set_if_version_newer_than(task->block->newer_than);
  }
  if (wanted.empty()) return absl::OkStatus();

  // The caller's thread receives, copies and checks: bytes that another thread received would come out of another core's cache, and every
  // chunk would wake it.
  grpc::ClientContext context;
  context.set_deadline(GrpcDeadline(deadline));
  context.set_wait_for_ready(wait);
  const RpcMethod method(kFetchMethod, RpcMethod::SERVER_STREAMING);
  const std::unique_ptr<grpc::ClientReader<grpc::ByteBuffer>> reader(
      grpc::internal::ClientReaderFactory<grpc::ByteBuffer>::Create(&channel, method, &context, request));
  FetchReceiver receiver(std::move(wanted));
  grpc::ByteBuffer message;
  absl::Status broken;
  while (broken.ok() && reader->Read(&message)) broken = receiver.Receive(message);
  if (!broken.ok()) context.TryCancel();
  const grpc::Status status = reader->Finish();
  RETURN_IF_ERROR(broken);
  RETURN_IF_ERROR(FromGrpc(status));
  return receiver.Finish();
}

absl::StatusOr<v1::PushAck> RunPushStream(grpc::Channel& channel, const v1::PushHeader& header,
                                          absl::Span<const BlockGradient* const> gradients, absl::Time deadline, bool wait) {
  Loans loans;
  v1::PushAck ack;
  grpc::Status status;
  {
    grpc::ClientContext context;
    context.set_deadline(GrpcDeadline(deadline));
    context.set_wait_for_ready(wait);
    const RpcMethod method(kPushMethod, RpcMethod::CLIENT_STREAMING);
    std::unique_ptr<grpc::ClientWriter<grpc::ByteBuffer>> writer(
        grpc::internal::ClientWriterFactory<grpc::ByteBuffer>::Create(&channel, method, &context, &ack));
    v1::PushChunk first;
    *first.mutable_push() = header;
    first.mutable_push()->set_block_count(static_cast<uint32_t>(gradients.size()));
    bool open = writer->Write(SmallMessage(first));
    for (size_t i = 0; open && i < gradients.size(); ++i) open = WriteGradient(*writer, *gradients[i], loans);
    writer->WritesDone();
    status = writer->Finish();
  }
  loans.AwaitAll();
  RETURN_IF_ERROR(FromGrpc(status));
  return ack;
}

}  // namespace membank
