#include "memory_server/checkpoint_stream.h"

#include <algorithm>
#include <cstring>
#include <optional>
#include <utility>

#include "common/base/bytes.h"
#include "common/base/status_macros.h"
#include "memory_server/block_image.h"
#include "memory_server/block_record.h"

namespace membank {

absl::StatusOr<BlockFacts> CheckRecords(const BankSpec& spec, BlockId id, absl::Span<const uint8_t> weights, absl::Span<const uint8_t> state) {
  const absl::StatusOr<WeightsRecord> payload = DecodeWeights(weights, spec.BlockBytes(id.level));
  if (!payload.ok()) return Annotate(payload.status(), fmt::format("payload of block {}", ToString(id)));
  const absl::StatusOr<StateRecord> beside = DecodeState(state);
  if (!beside.ok()) return Annotate(beside.status(), fmt::format("state of block {}", ToString(id)));
  RETURN_IF_ERROR(CheckState(spec, id, payload->version, *beside));
  return BlockFacts{payload->version, payload->crc32c};
}

// --- Out ---------------------------------------------------------------------------------------------------------------------------------

absl::StatusOr<std::unique_ptr<CutReader>> CutReader::Open(const CheckpointStore& store, const Cut& cut, const SlotSet& slots,
                                                             const BankSpec& spec) {
  ASSIGN_OR_RETURN(HeadStores stores, store.OpenCut(cut));
  return std::unique_ptr<CutReader>(new CutReader(cut, slots, spec, std::move(stores)));
}

absl::Status CutReader::Load(BlockId block) {
  if (frame_.size() > 0 && block_ == block) return absl::OkStatus();
  frame_ = Buffer();
  std::optional<BlockId> foreign = block;  // in a slot that moved away: the next one is asked for
  const auto load = [&](std::string_view key, absl::Span<const uint8_t> weights) -> absl::Status {
    ASSIGN_OR_RETURN(const BlockId found, ParseBlockKey(key));
    if (!slots_[SlotOf(found)]) {
      foreign = BlockId{found.level, found.cluster + 1};
      return absl::OkStatus();
    }
    absl::Status copied;
    RETURN_IF_ERROR(stores_.state->Get(key, [&](absl::Span<const uint8_t> state) {
      copied = CheckRecords(spec_, found, weights, state).status();
      if (!copied.ok()) return;
      const std::string header = EncodeFrameHeader({found, weights.size(), state.size()});
      frame_ = Buffer(header.size() + weights.size() + state.size());
      uint8_t* out = std::copy(header.begin(), header.end(), frame_.data());
      out = std::copy(weights.begin(), weights.end(), out);
      std::copy(state.begin(), state.end(), out);
      block_ = found;
    }));
    return copied;
  };
  while (foreign.has_value()) {
    const BlockId from = *std::exchange(foreign, std::nullopt);
    RETURN_IF_ERROR(stores_.weights->Seek(BlockKey(from), load));
  }
  return absl::OkStatus();
}

absl::StatusOr<CutReader::Piece> CutReader::Read(const Position& position, uint64_t max_bytes) {
  const absl::Status loaded = Load(position.block);
  if (!loaded.ok()) return Annotate(loaded, fmt::format("checkpoint {} in {}", cut_.id, cut_.directory));
  if (frame_.size() == 0) return Piece{{}, position};
  if (position.offset >= frame_.size() || (position.offset > 0 && block_ != position.block))
    return OutOfRange("checkpoint {} has no byte {} of block {}", cut_.id, position.offset, ToString(position.block));
  Piece piece;
  piece.bytes = std::as_const(frame_).span().subspan(position.offset, max_bytes);
  const uint64_t end = position.offset + piece.bytes.size();
  piece.next = end < frame_.size() ? Position{block_, end} : Position{{block_.level, block_.cluster + 1}, 0};
  return piece;
}

// --- In ----------------------------------------------------------------------------------------------------------------------------------

absl::Status CutWriter::Write(uint64_t offset, absl::Span<const uint8_t> bytes) {
  if (offset == last_offset_ && bytes.size() == last_bytes_ && offset + bytes.size() == received_) return absl::OkStatus();
  if (offset != received_)
    return FailedPrecondition("checkpoint {} came in up to byte {}, the next piece begins at byte {}; begin again with byte 0", id_, received_, offset);
  last_offset_ = offset;
  last_bytes_ = bytes.size();
  received_ += bytes.size();
  while (!bytes.empty()) {
    if (header_.size() < kFrameHeaderBytes) {
      const size_t take = std::min(bytes.size(), kFrameHeaderBytes - header_.size());
      header_.append(reinterpret_cast<const char*>(bytes.data()), take);
      bytes.remove_prefix(take);
      if (header_.size() == kFrameHeaderBytes) RETURN_IF_ERROR(TakeHeader());
      continue;
    }
    const size_t take = std::min<uint64_t>(bytes.size(), records_.size() - filled_);
    std::copy_n(bytes.data(), take, records_.data() + filled_);
    filled_ += take;
    bytes.remove_prefix(take);
    if (filled_ == records_.size()) RETURN_IF_ERROR(StoreBlock());
  }
  return absl::OkStatus();
}

absl::Status CutWriter::TakeHeader() {
  ASSIGN_OR_RETURN(frame_, DecodeFrameHeader(AsBytes(header_)));
  RETURN_IF_ERROR(check_block_(frame_.id));
  if (digest_.blocks > 0 && frame_.id <= last_block_)
    return InvalidArgument("block {} came behind block {}; blocks ascend", ToString(frame_.id), ToString(last_block_));
  const uint64_t most = 256 + spec_.BlockBytes(frame_.id.level) + 3 * sizeof(float) * spec_.BlockElements(frame_.id.level);
  if (frame_.weights_bytes == 0 || frame_.state_bytes == 0 || frame_.weights_bytes + frame_.state_bytes > most)
    return DataLoss("block {} comes with {} and {} bytes; together they can have {}", ToString(frame_.id), frame_.weights_bytes,
                    frame_.state_bytes, most);
  records_ = Buffer(frame_.weights_bytes + frame_.state_bytes);
  filled_ = 0;
  return absl::OkStatus();
}

absl::Status CutWriter::StoreBlock() {
  const absl::Span<const uint8_t> records = std::as_const(records_).span();
  const absl::Span<const uint8_t> weights = records.subspan(0, frame_.weights_bytes), state = records.subspan(frame_.weights_bytes);
  ASSIGN_OR_RETURN(const BlockFacts facts, CheckRecords(spec_, frame_.id, weights, state));
  RETURN_IF_ERROR(stores_.weights->Put(BlockKey(frame_.id), weights));
  RETURN_IF_ERROR(stores_.state->Put(BlockKey(frame_.id), state));
  digest_.Add(frame_.id, facts.version, facts.crc32c);
  last_block_ = frame_.id;
  header_.clear();
  return absl::OkStatus();
}

absl::Status CutWriter::Finish(const CutMarks& marks) {
  if (!header_.empty()) return DataLoss("checkpoint {} ends in the middle of block {}, after byte {}", id_, ToString(frame_.id), received_);
  RETURN_IF_ERROR(stores_.state->Put(kMarksKey, AsBytes(EncodeMarks(marks))));
  RETURN_IF_ERROR(stores_.weights->Flush());
  return stores_.state->Flush();
}

}  // namespace membank
