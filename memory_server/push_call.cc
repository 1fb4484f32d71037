#include "memory_server/push_call.h"

#include <cstring>

#include "common/bank/gradient_codec.h"
#include "common/base/status_macros.h"
#include "common/rpc/raw_message.h"
#include "common/rpc/status.h"
#include "common/rpc/wire.h"
#include "memory_server/fetch_call.h"

namespace membank {
namespace {

absl::StatusOr<DType> FromProto(v1::GradientDType dtype) {
  switch (dtype) {
    case v1::GRADIENT_DTYPE_F32: return DType::kF32;
    case v1::GRADIENT_DTYPE_BF16: return DType::kBF16;
    case v1::GRADIENT_DTYPE_I8_ROWS: return kI8Rows;
    default: return InvalidArgument("gradient type {} is unknown; allowed: F32 (1), BF16 (2), I8_ROWS (3)", static_cast<int>(dtype));
  }
}

}  // namespace

PushCall::PushCall(Shard* shard, grpc::CallbackServerContext* context, grpc::ByteBuffer* response)
    : shard_(shard), context_(context), response_(response), caller_(CallerOf(*context)) {
  StartRead(&message_);
}


// The thread that received a chunk copies and checks it, while it is in its core's cache; what comes meanwhile waits in the transport.
void PushCall::OnReadDone(bool ok) {
  if (!ok) return End(Complete());
  const absl::Status status = Receive(message_);
  message_.Clear();
  if (!status.ok()) return End(status);
  if (push_ && push_->outcome() != PushOutcome::kAccepted) {  // the rest need not come
    Acknowledge(push_->outcome());
    return End(absl::OkStatus());
  }
  StartRead(&message_);
}

absl::Status PushCall::Receive(const grpc::ByteBuffer& message) {
  expected_crc_.reset();
  RETURN_IF_ERROR(ParseRawMessage(
      message, v1::PushChunk::kDataFieldNumber,
      [this](uint32_t field, const std::string& bytes) {
        if (field == v1::PushChunk::kPushFieldNumber) return BeginPush(bytes);
        if (field == v1::PushChunk::kBlockFieldNumber) return BeginBlock(bytes);
        if (field == v1::PushChunk::kCrc32CFieldNumber) return ExpectCrc(bytes);
        return absl::OkStatus();
      },
      [this](absl::Span<const uint8_t> piece) { return Append(piece); }));
  return in_block_ && copy_.complete() ? EndBlock() : absl::OkStatus();
}

absl::Status PushCall::ExpectCrc(const std::string& bytes) {
  if (bytes.size() != sizeof(uint32_t)) return InvalidArgument("crc32c of a push chunk has {} bytes, must have 4", bytes.size());
  std::memcpy(&expected_crc_.emplace(), bytes.data(), sizeof(uint32_t));
  return absl::OkStatus();
}

absl::Status PushCall::BeginPush(const std::string& bytes) {
  if (push_) return InvalidArgument("a second push header came; one stream is one push");
  RETURN_IF_ERROR(shard_->access().CheckCall(caller_, "PushGradients"));
  if (!header_.ParseFromString(bytes)) return InvalidArgument("the push header is no PushHeader message");
  if (!header_.spec_hash().empty() && header_.spec_hash() != shard_->spec_hash()) {
    return FailedPrecondition("the push is for a bank with spec hash {}, this server holds {}", header_.spec_hash(), shard_->spec_hash());
  }
  if (header_.block_count() > kMaxBlocksPerCall) {
    return InvalidArgument("the push announces {} blocks; at most {} are allowed", header_.block_count(), kMaxBlocksPerCall);
  }
  absl::StatusOr<std::unique_ptr<GradientPush>> push =
      shard_->BeginPush({header_.run_id(), header_.epoch(), header_.step()}, header_.rank(),
                         {header_.sums().begin(), header_.sums().end()}, header_.slot_map_epoch());
  if (!push.ok()) return WithWrongSlot(*shard_, BlockId{}, push.status());
  push_ = *std::move(push);
  return absl::OkStatus();
}

absl::Status PushCall::BeginBlock(const std::string& bytes) {
  if (!push_) return InvalidArgument("a block came before the push header");
  if (push_->outcome() != PushOutcome::kAccepted) return absl::OkStatus();
  if (in_block_) return InvalidArgument("the next block began after {} of {} bytes of block {}", copy_.received(), copy_.size(), ToString(id_));
  if (blocks_ == header_.block_count()) return InvalidArgument("more than the announced {} blocks came", header_.block_count());
  v1::GradientHeader block;
  if (!block.ParseFromString(bytes)) return InvalidArgument("a block header is no GradientHeader message");
  id_ = membank::FromProto(block.id());
  auto dtype = FromProto(block.dtype());
  if (!dtype.ok()) return Annotate(dtype.status(), "block " + ToString(id_));
  RETURN_IF_ERROR(WithWrongSlot(*shard_, id_, push_->CheckBlock(id_, *dtype, block.total_bytes())));
  RETURN_IF_ERROR(shard_->access().CheckPush(*shard_->access().table(), caller_, id_));
  gradient_ = {*dtype, Buffer(block.total_bytes())};
  copy_ = CheckedCopy(gradient_.bytes.span());
  squares_ = SquareSum(ShapeOf(shard_->spec(), id_.level));
  in_block_ = true;
  return absl::OkStatus();
}

absl::Status PushCall::Append(absl::Span<const uint8_t> piece) {
  if (push_ && push_->outcome() != PushOutcome::kAccepted) return absl::OkStatus();
  if (!in_block_) return InvalidArgument("{} bytes of data came outside of a block", piece.size());
  if (!copy_.Append(piece)) return InvalidArgument("block {} got more than its {} bytes", ToString(id_), copy_.size());
  squares_.Extend(gradient_, copy_.received());
  return absl::OkStatus();
}

absl::Status PushCall::EndBlock() {
  in_block_ = false;
  ++blocks_;
  if (!expected_crc_.has_value()) return InvalidArgument("the last chunk of block {} has no crc32c of the gradient", ToString(id_));
  if (copy_.crc() != *expected_crc_) {
    return DataLoss("the gradient of block {} arrived with CRC32C {:08x}, its sender says {:08x}; the push does not count", ToString(id_),
                    copy_.crc(), *expected_crc_);
  }
  total_bytes_ += gradient_.bytes.size();
  gradient_.sum_of_squares = squares_.Get();
  return WithWrongSlot(*shard_, id_, push_->AddBlock(id_, std::move(gradient_)));
}

absl::Status PushCall::Complete() {
  if (context_->IsCancelled()) return Cancelled("the caller is gone; the push does not count");
  if (!push_) return InvalidArgument("the stream ended without a push header");
  if (in_block_ || blocks_ != header_.block_count()) {
    return InvalidArgument("the stream ended after {} of {} blocks{}; the push does not count", blocks_, header_.block_count(),
                           in_block_ ? ", inside of block " + ToString(id_) : "");
  }
  const absl::StatusOr<PushOutcome> finished = push_->Finish();
  if (!finished.ok()) return WithWrongSlot(*shard_, BlockId{}, finished.status());
  const PushOutcome outcome = *finished;
  if (outcome == PushOutcome::kAccepted) {
    static prometheus::Counter& bytes = GetCounter("membank_memory_pushed_bytes_total", "Bytes of gradients accepted");
    bytes.Increment(static_cast<double>(total_bytes_));
  }
  Acknowledge(outcome);
  return absl::OkStatus();
}

void PushCall::Acknowledge(PushOutcome outcome) {
  v1::PushAck ack;
  switch (outcome) {
    case PushOutcome::kAccepted: ack.set_result(v1::PUSH_RESULT_ACCEPTED); break;
    case PushOutcome::kDuplicate: ack.set_result(v1::PUSH_RESULT_DUPLICATE); break;
    case PushOutcome::kStale: ack.set_result(v1::PUSH_RESULT_STALE); break;
  }
  ack.set_head_step(shard_->Status().head_step);
  *response_ = MakeRawMessage(ack.SerializeAsString(), 0, {}, nullptr);
}

void PushCall::End(const absl::Status& status) {
  timer_.Done(status);
  push_.reset();
  gradient_ = Gradient();
  Finish(ToGrpc(status));
}

void PushCall::OnDone() { delete this; }

}  // namespace membank
