// A checkpoint as one stream of bytes, the same for every number of servers: blocks in ascending order, each a frame of
//   magic "MBF1" | CRC32C of this header | level u32 | cluster u32 | weights bytes u64 | state bytes u64      (little-endian)
// and then the weights record and the state record (memory_server/block_record.h), which carry checksums of their own. Pure functions.
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "common/bank/block.h"

namespace membank {

inline constexpr size_t kFrameHeaderBytes = 32;

struct BlockFrame {
  BlockId id;
  uint64_t weights_bytes = 0, state_bytes = 0;

  uint64_t bytes() const { return kFrameHeaderBytes + weights_bytes + state_bytes; }
};

std::string EncodeFrameHeader(const BlockFrame& frame);
absl::StatusOr<BlockFrame> DecodeFrameHeader(absl::Span<const uint8_t> bytes);  // DATA_LOSS; needs kFrameHeaderBytes

}  // namespace membank
