// One version of a touched block, whole: what lies in the head stores and in cuts (block_record.h says how). An image is immutable: a step
// makes a new one, so whoever writes or sends an image needs no lock. Pure functions over stores, any thread.
//
// Errors: DATA_LOSS names the block when a record is missing or damaged; else what the store says.
#pragma once

#include <array>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "common/bank/bank_spec.h"
#include "common/base/buffer.h"
#include "memory_server/block_record.h"
#include "memory_server/block_update.h"
#include "memory_server/buffer_pool.h"
#include "memory_server/checkpoint.h"
#include "memory_server/payload_cache.h"

namespace membank {

// Optimizer state of a touched block. The arrays come from the pool and go back to it.
struct TrainState : OptimizerState {
  explicit TrainState(std::shared_ptr<BufferPool> pool) : buffers(std::move(pool)) {}
  ~TrainState();
  TrainState(const TrainState&) = delete;
  TrainState& operator=(const TrainState&) = delete;

  const std::shared_ptr<BufferPool> buffers;
  std::shared_ptr<TrainState> Clone() const;
};

struct BlockImage {
  BlockId id;
  uint64_t version = 0;
  uint32_t crc32c = 0;
  SharedBuffer payload;
  std::shared_ptr<const TrainState> state;

  uint64_t bytes() const { return payload->size() + state->bytes(); }
};

// The image as a pair of store records, each a header and what follows it, borrowed from the image.
struct ImageRecords {
  std::string weights_header, state_header;
  absl::Span<const uint8_t> payload;
  std::array<absl::Span<const uint8_t>, 3> state;  // weights, m, v
};
ImageRecords RecordsOf(const BlockImage& image);

// Writes the images into both stores, in atomic batches of bounded size. On error some may be there.
absl::Status WriteImages(const HeadStores& stores, absl::Span<const BlockImage> images);

absl::StatusOr<CachedPayload> ReadPayload(const HeadStores& stores, const BankSpec& spec, BlockId id, BufferPool* buffers);
// State of the payload with this version.
absl::StatusOr<std::shared_ptr<TrainState>> ReadState(const HeadStores& stores, const BankSpec& spec, BlockId id, uint64_t version,
                                                      const std::shared_ptr<BufferPool>& buffers);

// From a pair of store records, as WriteImages makes them; copied.
absl::StatusOr<BlockImage> DecodeImage(const BankSpec& spec, BlockId id, absl::Span<const uint8_t> weights, absl::Span<const uint8_t> state,
                                       const std::shared_ptr<BufferPool>& buffers);

// Does a record read from a state store belong to a payload of that version, and does it fit the bank?
absl::Status CheckState(const BankSpec& spec, BlockId id, uint64_t payload_version, const StateRecord& record);
std::shared_ptr<TrainState> CopyState(const StateRecord& record, const std::shared_ptr<BufferPool>& buffers);
SharedBuffer CopyPayload(absl::Span<const uint8_t> bytes, BufferPool* buffers);

}  // namespace membank
