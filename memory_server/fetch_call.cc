#include "memory_server/fetch_call.h"

#include "absl/strings/cord.h"
#include "absl/strings/numbers.h"
#include "absl/time/clock.h"
#include "common/base/status_macros.h"
#include "common/rpc/raw_message.h"
#include "common/rpc/status.h"
#include "common/rpc/wire.h"
#include "grpcpp/impl/codegen/proto_utils.h"

namespace membank {
namespace {

absl::Status Gone() { return Cancelled("the caller is gone"); }

}  // namespace

absl::Status WithWrongSlot(const Shard& shard, BlockId id, absl::Status status) {
  const absl::optional<absl::Cord> epoch = status.GetPayload(kSlotMapEpochPayload);
  uint64_t number = 0;
  if (!epoch.has_value() || !absl::SimpleAtoi(std::string(*epoch), &number)) return status;
  status.ErasePayload(kSlotMapEpochPayload);
  AddWrongSlot(shard.server_id(), number, id, &status);
  return status;
}

FetchCall::FetchCall(Shard* shard, ThreadPool* readers, CallThreads* waiters, grpc::CallbackServerContext* context,
                     const grpc::ByteBuffer* request)
    : shard_(shard), readers_(readers), waiters_(waiters), context_(context), caller_(CallerOf(*context)) {
  Start(*request);
}

void FetchCall::Start(const grpc::ByteBuffer& request) {
  absl::Status status = Parse(request);
  if (status.ok()) status = Check();
  if (!status.ok()) return End(status);
  if (request_.min_step() > 0 && !shard_->WaitForStep(request_.min_step(), absl::InfinitePast()).ok()) {
    const absl::Time deadline = absl::FromChrono(context_->deadline());
    status = waiters_->Start([this, deadline] { WaitThenStart(deadline); });
    if (!status.ok()) End(status);
    return;
  }
  ReadNext();
  WriteNext();
}

absl::Status FetchCall::Parse(const grpc::ByteBuffer& request) {
  grpc::ByteBuffer bytes = request;
  if (!grpc::SerializationTraits<v1::FetchBlocksRequest>::Deserialize(&bytes, &request_).ok()) {
    return InvalidArgument("the request is no FetchBlocksRequest message");
  }
  return absl::OkStatus();
}

absl::Status FetchCall::Check() const {
  if (request_.blocks_size() > static_cast<int>(kMaxBlocksPerCall)) {
    return InvalidArgument("the request names {} blocks; at most {} are allowed", request_.blocks_size(), kMaxBlocksPerCall);
  }
  if (!request_.spec_hash().empty() && request_.spec_hash() != shard_->spec_hash()) {
    return FailedPrecondition("the request is for a bank with spec hash {}, this server holds {}", request_.spec_hash(), shard_->spec_hash());
  }
  if (request_.min_step() > 0 && !request_.bank_version().empty()) {
    return InvalidArgument("min_step {} with bank version '{}'; a published version never changes, so leave one of them out",
                           request_.min_step(), request_.bank_version());
  }
  for (const auto& block : request_.blocks()) {
    const BlockId id = FromProto(block.id());
    RETURN_IF_ERROR(WithWrongSlot(*shard_, id, shard_->CheckBlock(id)));
    if (block.if_version_newer_than() > INT64_MAX) {
      return InvalidArgument("block {}: if_version_newer_than {} is above {}", ToString(id), block.if_version_newer_than(), INT64_MAX);
    }
  }
  return absl::OkStatus();
}

void FetchCall::WaitThenStart(absl::Time deadline) {
  const absl::Status status =
      WaitInSlices(deadline, [this] { return cancelled_.load(); }, [this](absl::Time until) { return shard_->WaitForStep(request_.min_step(), until); });
  if (!status.ok()) return End(status);
  ReadNext();
  WriteNext();
}

void FetchCall::ReadNext() {
  int index;
  {
    absl::MutexLock lock(&mu_);
    if (next_read_ == request_.blocks_size()) return;
    index = next_read_++;
    reading_ = true;
  }
  absl::StatusOr<BlockRead> at_hand = ReadBlock(index, ReadFrom::kRam);
  if (!at_hand.ok() || !at_hand->elsewhere) {
    absl::MutexLock lock(&mu_);
    reading_ = false;
    ahead_ = std::move(at_hand);
    return;
  }
  readers_->Schedule([this, index] {
    absl::StatusOr<BlockRead> read = Gone();
    if (!cancelled_) read = ReadBlock(index, ReadFrom::kAnywhere);
    bool wake;
    {
      absl::MutexLock lock(&mu_);
      reading_ = false;
      ahead_ = std::move(read);
      wake = writer_waits_;
      writer_waits_ = false;
    }
    if (wake) WriteNext();
  });
}

absl::StatusOr<BlockRead> FetchCall::ReadBlock(int index, ReadFrom from) {
  const auto& block = request_.blocks(index);
  const BlockId id = FromProto(block.id());
  const int64_t newer_than = block.has_if_version_newer_than() ? static_cast<int64_t>(block.if_version_newer_than()) : -1;
  RETURN_IF_ERROR(shard_->CheckBlock(id));
  const AccessControl& access = shard_->access();
  const std::shared_ptr<const AccessTable> table = access.table();
  RETURN_IF_ERROR(access.CheckFetch(*table, caller_, id));
  if (access.IsBlocked(*table, id)) return BlockRead{.blocked = true};
  return request_.bank_version().empty() ? shard_->Read(id, newer_than, from)
                                          : shard_->ReadVersion(request_.bank_version(), id, newer_than, from);
}

// A receiver that reads slowly must not get the rest of a block hours after it was blocked.
absl::Status FetchCall::CheckStillServed() const {
  if (!current_.payload) return absl::OkStatus();
  const BlockId id = FromProto(request_.blocks(written_ == 0 ? sent_blocks_ : sent_blocks_ - 1).id());
  const AccessControl& access = shard_->access();
  const std::shared_ptr<const AccessTable> table = access.table();
  if (!access.IsBlocked(*table, id)) return absl::OkStatus();
  return Aborted("block {} was blocked while it was being sent; fetch again", ToString(id));
}

void FetchCall::WriteNext() {
  if (current_.payload && written_ < current_.payload->size() && !cancelled_) return WriteChunk();
  current_ = BlockRead();
  std::optional<absl::StatusOr<BlockRead>> next;
  {
    absl::MutexLock lock(&mu_);
    if (reading_) {  // the call must not end before its reader has
      writer_waits_ = true;
      return;
    }
    next.swap(ahead_);
  }
  if (cancelled_) return End(Gone());
  if (!revoked_.ok()) return End(revoked_);
  if (!next) return End(absl::OkStatus());
  if (!next->ok()) return End(WithWrongSlot(*shard_, FromProto(request_.blocks(sent_blocks_).id()), next->status()));
  current_ = **std::move(next);
  written_ = 0;
  ReadNext();
  WriteChunk();
}

void FetchCall::WriteChunk() {
  revoked_ = CheckStillServed();
  if (!revoked_.ok()) {
    current_.payload = nullptr;
    return WriteNext();  // ends the call, once no read is running
  }
  std::string head;
  if (written_ == 0) {
    v1::FetchChunk chunk;
    v1::BlockHeader& header = *chunk.mutable_header();
    *header.mutable_id() = request_.blocks(sent_blocks_++).id();
    header.set_version(current_.version);
    header.set_unchanged(current_.unchanged);
    header.set_blocked(current_.blocked);
    if (current_.payload) {
      header.set_crc32c(current_.crc32c);
      header.set_total_bytes(current_.payload->size());
      header.set_payload(ToProto(current_.type));
    }
    head = chunk.SerializeAsString();
  }
  absl::Span<const uint8_t> bytes;
  if (current_.payload) bytes = current_.payload->span().subspan(written_, kChunkBytes);
  written_ += bytes.size();
  sent_bytes_ += bytes.size();
  message_ = MakeRawMessage(head, v1::FetchChunk::kDataFieldNumber, bytes, current_.payload);
  StartWrite(&message_);
}

void FetchCall::OnWriteDone(bool ok) {
  message_.Clear();
  if (!ok) cancelled_ = true;
  WriteNext();
}

void FetchCall::OnCancel() { cancelled_ = true; }

void FetchCall::End(const absl::Status& status) {
  timer_.Done(status);
  static prometheus::Counter& blocks = GetCounter("membank_memory_fetched_blocks_total", "Blocks sent, unchanged ones included");
  static prometheus::Counter& bytes = GetCounter("membank_memory_fetched_bytes_total", "Payload bytes sent");
  blocks.Increment(static_cast<double>(sent_blocks_));
  bytes.Increment(static_cast<double>(sent_bytes_));
  Finish(ToGrpc(status));
}

void FetchCall::OnDone() { delete this; }

}  // namespace membank
