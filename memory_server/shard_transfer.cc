// Checkpoints that are verified, that leave and that come in. See shard.h and checkpoint_stream.h.
#include <utility>

#include "common/base/status_macros.h"
#include "memory_server/block_record.h"
#include "memory_server/shard.h"

namespace membank {

absl::StatusOr<std::vector<std::string>> Shard::VerifyCheckpoint(const std::string& id) const {
  const uint64_t purges = checkpoints_->purges();
  ASSIGN_OR_RETURN(const Cut cut, checkpoints_->Find(id));
  std::vector<std::string> damage;
  const auto note = [&](const absl::Status& status, const std::string& where) {
    if (!status.ok()) damage.push_back(fmt::format("server {}: {}{}: {}", options_.server_id, cut.directory, where, std::string(status.message())));
  };
  const auto unpurged = [&]() -> absl::StatusOr<std::vector<std::string>> {
    if (checkpoints_->purges() == purges) return damage;
    return Aborted("blocks were purged on server \"{}\" while checkpoint {} was verified; verify it again", options_.server_id, id);
  };
  const absl::StatusOr<HeadStores> stores = checkpoints_->OpenCut(cut);
  if (!stores.ok()) {
    note(stores.status(), "");
    return unpurged();
  }
  note(stores->weights->Verify(), "/weights");
  note(stores->state->Verify(), "/state");
  CutDigest digest;
  uint64_t states = 0;
  note(stores->weights->Scan(kBlockKeyPrefix, [&](std::string_view key, absl::Span<const uint8_t> weights) {
    const absl::StatusOr<BlockId> block = ParseBlockKey(key);
    note(block.status(), "/weights");
    if (!block.ok()) return absl::OkStatus();
    absl::StatusOr<BlockFacts> facts = DataLoss("block {} has no state", ToString(*block));
    const absl::Status got = stores->state->Get(key, [&](absl::Span<const uint8_t> state) { facts = CheckRecords(spec_, *block, weights, state); });
    note(got.ok() ? facts.status() : got, fmt::format(", block {}", ToString(*block)));
    if (facts.ok()) digest.Add(*block, facts->version, facts->crc32c);
    return absl::OkStatus();
  }), "/weights");
  note(stores->state->Scan(kBlockKeyPrefix, [&](std::string_view, absl::Span<const uint8_t>) { return ++states, absl::OkStatus(); }), "/state");
  if (damage.empty() && (digest != cut.digest || states != digest.blocks))
    note(DataLoss("{} blocks with digest {:08x} and {} states, the manifest says {} blocks with {:08x}", digest.blocks, digest.crc32c, states,
                  cut.digest.blocks, cut.digest.crc32c), "");
  return unpurged();
}

absl::Status Shard::ReadCheckpoint(const std::string& id, const CutReader::Position& position, uint64_t max_bytes,
                                   const std::function<void(const CutReader::Piece&, const CutMarks&)>& visit) {
  absl::MutexLock lock(&transfer_mu_);
  ASSIGN_OR_RETURN(const Cut cut, checkpoints_->Find(id));
  if (cut.committed == 0) return FailedPrecondition("checkpoint {} is not committed on server \"{}\"; commit it before copying it", id, options_.server_id);
  const SlotSet slots = ownership_.slots();
  RETURN_IF_ERROR(CheckHolds(cut, *ownership_.map()));
  if (reader_ == nullptr || reader_->cut().id != id || reader_->cut().marks != cut.marks || reader_->cut().held != cut.held ||
      reader_->slots() != slots) {
    reader_.reset();
    ASSIGN_OR_RETURN(reader_, CutReader::Open(*checkpoints_, cut, slots, spec_));
  }
  ASSIGN_OR_RETURN(const CutReader::Piece piece, reader_->Read(position, max_bytes));
  visit(piece, cut.marks);
  if (piece.bytes.empty()) reader_.reset();
  return absl::OkStatus();
}

absl::Status Shard::WriteCheckpoint(const std::string& id, uint64_t offset, absl::Span<const uint8_t> bytes) {
  RETURN_IF_ERROR(CheckFreeSpace(bytes.size()));
  absl::MutexLock lock(&transfer_mu_);
  if (offset == 0) {
    if (checkpoints_->Find(id).ok()) return AlreadyExists("checkpoint {} exists on server \"{}\"; delete it or choose another id", id, options_.server_id);
    writer_.reset();
    writer_slots_ = {ownership_.slots(), ownership_.epoch()};
    ASSIGN_OR_RETURN(HeadStores stores, checkpoints_->OpenScratch(id));
    writer_ = std::make_unique<CutWriter>(id, spec_, std::move(stores), [this](BlockId block) { return CheckBlock(block); });
  }
  if (writer_ == nullptr || writer_->id() != id)
    return FailedPrecondition("no checkpoint {} is coming in on server \"{}\"; begin with byte 0", id, options_.server_id);
  const absl::Status written = writer_->Write(offset, bytes);
  if (!written.ok()) writer_.reset();
  return written;
}

absl::Status Shard::FinishWriteCheckpoint(const std::string& id, const CutMarks& marks) {
  absl::MutexLock lock(&transfer_mu_);
  const absl::StatusOr<Cut> existing = checkpoints_->Find(id);
  if (existing.ok() && existing->marks == marks) return absl::OkStatus();  // asked again
  if (writer_ == nullptr || writer_->id() != id)
    return FailedPrecondition("no checkpoint {} is coming in on server \"{}\"; begin with byte 0", id, options_.server_id);
  RETURN_IF_ERROR(writer_->Finish(marks));
  {
    absl::MutexLock cut_lock(&cut_mu_);
    RETURN_IF_ERROR(AwaitCutsThawed());
    if (ownership_.slots() != writer_slots_.slots)
      return Aborted("slots of server \"{}\" moved while checkpoint {} came in; begin again", options_.server_id, id);
    RETURN_IF_ERROR(checkpoints_->Prepare(id, marks, writer_->digest(), writer_slots_, writer_->stores()));
  }
  writer_.reset();
  return checkpoints_->RemoveScratch(id);
}

}  // namespace membank
