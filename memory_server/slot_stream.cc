#include "memory_server/slot_stream.h"

#include "common/base/log.h"
#include "common/base/status_macros.h"
#include "common/rpc/channel.h"
#include "common/rpc/status.h"
#include "common/rpc/training_wire.h"
#include "common/rpc/wire.h"
#include "grpcpp/client_context.h"
#include "memory_server/caller.h"

namespace membank {
namespace {

constexpr uint64_t kMaxRecordBytes = uint64_t{2} << 30;

void ToProto(const MergeSource& source, v1::SlotCut* out) {
  out->set_checkpoint_id(source.checkpoint_id);
  out->set_version(source.version);
  out->set_step(source.marks.step);
  out->set_run_id(source.marks.run_id);
  out->set_run_epoch(source.marks.run_epoch);
  out->set_commit_order(source.committed);
  out->set_blocks(source.digest.blocks);
  out->set_blocks_crc32c(source.digest.crc32c);
  out->set_payload(membank::ToProto(source.payload));
}

absl::StatusOr<MergeSource> FromProto(const v1::SlotCut& cut) {
  ASSIGN_OR_RETURN(const PayloadType payload, membank::FromProto(cut.payload()));
  return MergeSource{cut.checkpoint_id(), cut.version(), {cut.step(), cut.run_id(), cut.run_epoch()}, cut.commit_order(),
                     {cut.blocks(), cut.blocks_crc32c()}, payload};
}

// Reads one export to its end.
class ExportReader {
 public:
  using Visitor = SlotMover::Visitor;
  static absl::Status Read(v1::MemoryService::Stub* stub, const v1::ExportSlotsRequest& request, absl::Time deadline, const std::string& peer,
                           SlotCopyResult* result, const Visitor& visit) {
    grpc::ClientContext context;
    context.set_deadline(absl::ToChronoTime(deadline));
    const auto stream = stub->ExportSlots(&context, request);
    ExportReader reader(visit, result);
    v1::ExportSlotsChunk chunk;
    absl::Status broken;
    while (broken.ok() && stream->Read(&chunk)) broken = reader.Take(chunk);
    if (!broken.ok()) context.TryCancel();
    const grpc::Status ended = stream->Finish();
    RETURN_IF_ERROR(broken);
    RETURN_IF_ERROR(FromGrpc(ended, peer));
    return reader.left_ == 0 ? absl::OkStatus() : DataLoss("{}: the export ended {} bytes too early", peer, reader.left_);
  }

 private:
  ExportReader(const Visitor& visit, SlotCopyResult* result) : visit_(visit), result_(result) {}

  absl::Status Take(const v1::ExportSlotsChunk& chunk) {
    if (chunk.has_block()) {
      if (left_ > 0) return DataLoss("the next block came {} bytes too early", left_);
      header_ = chunk.block();
      if (header_.weights_bytes() > kMaxRecordBytes || header_.state_bytes() > kMaxRecordBytes)
        return InvalidArgument("block {} is announced with {} + {} bytes; at most {} each are allowed", ToString(membank::FromProto(header_.id())),
                               header_.weights_bytes(), header_.state_bytes(), kMaxRecordBytes);
      left_ = header_.weights_bytes() + header_.state_bytes();
      bytes_.clear();
      bytes_.reserve(left_);
    }
    if (chunk.data().size() > left_) return DataLoss("{} bytes came where {} were due", chunk.data().size(), left_);
    bytes_.insert(bytes_.end(), chunk.data().begin(), chunk.data().end());
    left_ -= chunk.data().size();
    if (left_ > 0) return absl::OkStatus();
    ++result_->blocks;
    result_->bytes += bytes_.size();
    const absl::Span<const uint8_t> all(bytes_);
    return visit_(membank::FromProto(header_.id()), all.subspan(0, header_.weights_bytes()), all.subspan(header_.weights_bytes()));
  }

  const Visitor& visit_;
  SlotCopyResult* const result_;
  v1::ExportedBlock header_;
  std::vector<uint8_t> bytes_;
  uint64_t left_ = 0;
};

// The server that blocks are copied from.
struct Owner {
  std::string name;  // in front of every error
  std::unique_ptr<v1::MemoryService::Stub> stub;
  v1::SlotsReply slots;
  SlotSourceState state;  // the same, in the engine's words
};

absl::StatusOr<Owner> AskOwner(std::string name, const TlsFiles& tls, const std::string& address, absl::Time deadline) {
  ChannelOptions options;
  options.tls = tls;
  ASSIGN_OR_RETURN(const auto channels, MakeChannels(address, options));
  Owner owner;
  owner.name = std::move(name);
  owner.stub = v1::MemoryService::NewStub(channels[0]);
  grpc::ClientContext context;
  context.set_deadline(absl::ToChronoTime(deadline));
  RETURN_IF_ERROR(FromGrpc(owner.stub->GetSlots(&context, {}, &owner.slots), owner.name));
  ASSIGN_OR_RETURN(owner.state, membank::FromProto(owner.slots));
  return owner;
}

// Who may read what travels with the blocks.
absl::Status CopyAccess(const Owner& owner, SlotMover* mover, absl::Time deadline) {
  v1::AccessTable reply;
  grpc::ClientContext context;
  context.set_deadline(absl::ToChronoTime(deadline));
  RETURN_IF_ERROR(FromGrpc(owner.stub->GetAccess(&context, {}, &reply), owner.name));
  ASSIGN_OR_RETURN(const AccessTable table, membank::FromProto(reply));
  return mover->access().Follow(table);
}

}  // namespace

void ToProto(const SlotSourceState& state, v1::SlotsReply* out) {
  for (uint64_t bytes : state.slot_bytes) out->add_slot_bytes(bytes);
  out->set_generation(state.generation);
  out->set_head_step(state.head_step);
  out->set_run_active(state.run_active);
  ToProto(state.run, out->mutable_run());
  for (const auto& [run_id, epoch] : state.run_epochs) (*out->mutable_run_epochs())[run_id] = epoch;
  out->set_sealed_by(state.sealed_by);
  for (const MergeSource& cut : state.cuts) ToProto(cut, out->add_cuts());
  for (const MergeSource& version : state.versions) ToProto(version, out->add_versions());
}

absl::StatusOr<SlotSourceState> FromProto(const v1::SlotsReply& reply) {
  SlotSourceState state;
  state.slot_bytes.assign(reply.slot_bytes().begin(), reply.slot_bytes().end());
  state.generation = reply.generation();
  state.head_step = reply.head_step();
  state.run_active = reply.run_active();
  if (!reply.run().run_id().empty()) {
    ASSIGN_OR_RETURN(state.run, FromProto(reply.run()));
  }
  for (const auto& [run_id, epoch] : reply.run_epochs()) state.run_epochs[run_id] = epoch;
  state.sealed_by = reply.sealed_by();
  for (const v1::SlotCut& cut : reply.cuts()) {
    ASSIGN_OR_RETURN(state.cuts.emplace_back(), FromProto(cut));
  }
  for (const v1::SlotCut& version : reply.versions()) {
    ASSIGN_OR_RETURN(state.versions.emplace_back(), FromProto(version));
  }
  return state;
}

// --- Old owner -----------------------------------------------------------------------------------------------------------------------------

ExportCall::ExportCall(Shard* shard, const SlotMover* mover, CallThreads* threads, grpc::CallbackServerContext* context,
                       const v1::ExportSlotsRequest& request)
    : shard_(shard), mover_(mover), request_(request) {
  absl::Status started = shard->access().CheckCall(CallerOf(*context), "ExportSlots");
  if (started.ok()) started = threads->Start([this] { Finish(ToGrpc(Run())); });
  if (!started.ok()) Finish(ToGrpc(started));
}

absl::Status ExportCall::Run() {
  if (!request_.spec_hash().empty() && request_.spec_hash() != shard_->spec_hash())
    return FailedPrecondition("the request is for a bank with spec hash {}, this server holds {}", request_.spec_hash(), shard_->spec_hash());
  ASSIGN_OR_RETURN(const SlotSet slots, ParseSlots(request_.slots()));
  const auto write = [this](BlockId id, absl::Span<const uint8_t> weights, absl::Span<const uint8_t> state) { return WriteBlock(id, weights, state); };
  if (!request_.version().empty()) return mover_->ExportVersion(request_.version(), slots, request_.base_version(), write);
  if (!request_.checkpoint_id().empty()) return mover_->ExportCut(request_.checkpoint_id(), slots, write);
  return mover_->ExportHead(slots, request_.newer_than(), write);
}

absl::Status ExportCall::WriteBlock(BlockId id, absl::Span<const uint8_t> weights, absl::Span<const uint8_t> state) {
  v1::ExportSlotsChunk chunk;
  membank::ToProto(id, chunk.mutable_block()->mutable_id());
  chunk.mutable_block()->set_weights_bytes(weights.size());
  chunk.mutable_block()->set_state_bytes(state.size());
  if (weights.empty() && state.empty()) return Write(chunk);
  for (absl::Span<const uint8_t> record : {weights, state})
    for (size_t begin = 0; begin < record.size(); begin += kChunkBytes) {
      const auto piece = record.subspan(begin, kChunkBytes);
      chunk.set_data(piece.data(), piece.size());
      RETURN_IF_ERROR(Write(chunk));
      chunk.clear_block();
    }
  return absl::OkStatus();
}

absl::Status ExportCall::Write(const v1::ExportSlotsChunk& chunk) {
  {
    absl::MutexLock lock(&mu_);
    if (broken_) return Cancelled("the caller is gone");
    writing_ = true;
  }
  StartWrite(&chunk);
  absl::MutexLock lock(&mu_);
  mu_.Await(absl::Condition(+[](bool* writing) { return !*writing; }, &writing_));
  return broken_ ? Cancelled("the caller is gone") : absl::OkStatus();
}

void ExportCall::OnWriteDone(bool ok) {
  absl::MutexLock lock(&mu_);
  writing_ = false;
  if (!ok) broken_ = true;
}

void ExportCall::OnCancel() {
  absl::MutexLock lock(&mu_);
  broken_ = true;
}

// --- New owner -----------------------------------------------------------------------------------------------------------------------------

absl::StatusOr<SlotCopyResult> CopySlots(SlotMover* mover, const std::string& spec_hash, const TlsFiles& tls, const std::string& address,
                                         const std::string& move_id, const SlotSet& slots, bool last, absl::Time deadline) {
  ASSIGN_OR_RETURN(const Owner owner, AskOwner("old owner at " + address, tls, address, deadline));
  const SlotSourceState& source = owner.state;
  ASSIGN_OR_RETURN(const SlotSet owned, ParseSlots(owner.slots.slots()));
  if ((slots & ~owned).any())
    return FailedPrecondition("server \"{}\" at {} does not own slots {} by its slot map epoch {}", owner.slots.server_id(), address,
                              FormatSlots(slots & ~owned), owner.slots.slot_map_epoch());
  RETURN_IF_ERROR(CopyAccess(owner, mover, deadline));
  ASSIGN_OR_RETURN(const uint64_t copied_step, mover->BeginRound(move_id, slots, source));

  SlotCopyResult result;
  v1::ExportSlotsRequest request;
  request.set_slots(FormatSlots(slots));
  request.set_spec_hash(spec_hash);
  const auto copy = [&](const MergeSource& from) -> absl::Status {
    if (mover->Holds(from, slots)) return absl::OkStatus();
    ASSIGN_OR_RETURN(const std::unique_ptr<CutMerge> merge, mover->BeginMerge(from, slots));
    if (merge == nullptr) return absl::OkStatus();
    v1::ExportSlotsRequest of_cut = request;
    if (from.version.empty()) of_cut.set_checkpoint_id(from.checkpoint_id);
    else of_cut.set_version(from.version);
    SlotCopyResult copied;
    RETURN_IF_ERROR(ExportReader::Read(owner.stub.get(), of_cut, deadline, owner.name, &copied,
                                       [&](BlockId id, auto weights, auto state) { return merge->Add(id, weights, state); }));
    RETURN_IF_ERROR(merge->Finish());
    result.bytes += copied.bytes;
    return mover->Install(merge.get());
  };
  for (const MergeSource& cut : source.cuts) {
    const absl::Status copied = copy(cut);
    // Checkpoints come and go while training goes on; the last round, behind the fence, needs them all.
    const bool gone = absl::IsNotFound(copied) || absl::IsAborted(copied);
    if (!copied.ok() && (last || !gone)) return Annotate(copied, "checkpoint " + cut.checkpoint_id);
  }
  RETURN_IF_ERROR(mover->CommitAs(source));
  for (const MergeSource& version : source.versions) {
    const absl::Status copied = copy(version);
    if (!copied.ok()) return Annotate(copied, "version " + version.version);
  }

  request.set_newer_than(copied_step);
  SlotCopyResult head;
  RETURN_IF_ERROR(ExportReader::Read(owner.stub.get(), request, deadline, owner.name, &head,
                                     [&](BlockId id, auto weights, auto state) { return mover->Stage(move_id, id, weights, state); }));
  result.blocks = head.blocks;
  result.bytes += head.bytes;
  RETURN_IF_ERROR(mover->EndRound(move_id, slots, source, last));
  return result;
}

// --- Replica -------------------------------------------------------------------------------------------------------------------------------

absl::StatusOr<SlotCopyResult> CopyVersions(SlotMover* mover, const std::string& spec_hash, const TlsFiles& tls, const std::string& address,
                                            const SlotSet& slots, absl::Time deadline) {
  ASSIGN_OR_RETURN(const Owner owner, AskOwner("owner at " + address, tls, address, deadline));
  RETURN_IF_ERROR(CopyAccess(owner, mover, deadline));

  SlotCopyResult result;
  std::map<PayloadType, std::string> bases;  // the newest version of each form that both have
  for (const MergeSource& version : owner.state.versions) {
    if (mover->Holds(version, slots)) {
      bases[version.payload] = version.version;
      continue;
    }
    const std::string& base = bases[version.payload];
    v1::ExportSlotsRequest request;
    request.set_slots(FormatSlots(slots));
    request.set_spec_hash(spec_hash);
    request.set_version(version.version);
    request.set_base_version(base);
    ASSIGN_OR_RETURN(const std::unique_ptr<CutMerge> merge, mover->BeginMerge(version, slots, base));
    RETURN_IF_ERROR(ExportReader::Read(owner.stub.get(), request, deadline, owner.name, &result,
                                       [&](BlockId id, auto weights, auto state) { return merge->Add(id, weights, state); }));
    RETURN_IF_ERROR(merge->Finish());
    if (owner.slots.slots() == FormatSlots(slots) && merge->digest() != version.digest)
      return DataLoss("version {} has {} blocks with digest {:08x} here, {} with {:08x} on the {}", version.version, merge->digest().blocks,
                      merge->digest().crc32c, version.digest.blocks, version.digest.crc32c, owner.name);
    RETURN_IF_ERROR(mover->Install(merge.get()));
    bases[version.payload] = version.version;
  }
  return result;
}

}  // namespace membank
