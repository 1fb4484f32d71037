// A cut going out as a stream of frames (common/bank/block_frame.h), piece by piece, and such a stream coming in as a new cut. Memory: one
// block, whatever the size of the bank. Each object: one call at a time, serialised by the shard.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "common/bank/bank_spec.h"
#include "common/bank/block_frame.h"
#include "common/base/buffer.h"
#include "memory_server/checkpoint.h"

namespace membank {

// DATA_LOSS unless both records are whole and belong together; the version and checksum of the weights otherwise.
struct BlockFacts {
  uint64_t version = 0;
  uint32_t crc32c = 0;
};
absl::StatusOr<BlockFacts> CheckRecords(const BankSpec& spec, BlockId id, absl::Span<const uint8_t> weights, absl::Span<const uint8_t> state);

// Reads a cut. A position is a block (the first one that is not below it) and an offset into its frame; any position may be asked for, asking
// in order is fast.
class CutReader {
 public:
  struct Position {
    BlockId block;
    uint64_t offset = 0;
  };
  struct Piece {
    absl::Span<const uint8_t> bytes;  // borrowed until the next Read; empty: the stream has ended
    Position next;
  };

  // The blocks of `slots`; what else the cut has belongs to other servers by now.
  static absl::StatusOr<std::unique_ptr<CutReader>> Open(const CheckpointStore& store, const Cut& cut, const SlotSet& slots, const BankSpec& spec);
  const Cut& cut() const { return cut_; }
  const SlotSet& slots() const { return slots_; }
  absl::StatusOr<Piece> Read(const Position& position, uint64_t max_bytes);

 private:
  CutReader(const Cut& cut, const SlotSet& slots, const BankSpec& spec, HeadStores stores)
      : cut_(cut), slots_(slots), spec_(spec), stores_(std::move(stores)) {}
  absl::Status Load(BlockId block);  // frame_ is then the frame of the first block not below, or empty

  const Cut cut_;
  const SlotSet slots_;
  const BankSpec& spec_;
  const HeadStores stores_;
  BlockId block_;
  Buffer frame_;
};

// Writes a stream into scratch stores, which then are cut like a head.
class CutWriter {
 public:
  CutWriter(std::string id, const BankSpec& spec, HeadStores stores, std::function<absl::Status(BlockId)> check_block)
      : id_(std::move(id)), spec_(spec), stores_(std::move(stores)), check_block_(std::move(check_block)) {}

  const std::string& id() const { return id_; }
  // `offset` counts from the start of the stream. The last piece may come twice; any other place than the end is FAILED_PRECONDITION. After
  // an error the writer is of no use.
  absl::Status Write(uint64_t offset, absl::Span<const uint8_t> bytes);
  // All of it was there; the stores are flushed.
  absl::Status Finish(const CutMarks& marks);
  const CutDigest& digest() const { return digest_; }
  const HeadStores& stores() const { return stores_; }

 private:
  absl::Status TakeHeader();
  absl::Status StoreBlock();

  const std::string id_;
  const BankSpec& spec_;
  const HeadStores stores_;
  const std::function<absl::Status(BlockId)> check_block_;
  uint64_t received_ = 0, last_offset_ = 0, last_bytes_ = 0;
  std::string header_;    // of the frame that is coming in
  BlockFrame frame_;
  Buffer records_;        // of that frame
  uint64_t filled_ = 0;
  BlockId last_block_;
  CutDigest digest_;
};

}  // namespace membank
