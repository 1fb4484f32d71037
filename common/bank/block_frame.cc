#include "common/bank/block_frame.h"

#include <cstring>

#include "common/base/crc32c.h"
#include "common/base/status_macros.h"

namespace membank {
namespace {

constexpr uint32_t kMagic = 0x3146424d;  // "MBF1"
constexpr uint64_t kMaxRecordBytes = uint64_t{1} << 36;  // a block has less than 2 GiB, its state at most 12 bytes per 2 of them

struct Header {
  uint32_t magic = kMagic, crc = 0, level = 0, cluster = 0;
  uint64_t weights_bytes = 0, state_bytes = 0;
};
static_assert(sizeof(Header) == kFrameHeaderBytes, "no padding: the struct is the format");

uint32_t CrcOf(Header header) {
  header.crc = 0;
  return Crc32c(&header, sizeof(header));
}

}  // namespace

std::string EncodeFrameHeader(const BlockFrame& frame) {
  Header header{kMagic, 0, frame.id.level, frame.id.cluster, frame.weights_bytes, frame.state_bytes};
  header.crc = CrcOf(header);
  return std::string(reinterpret_cast<const char*>(&header), sizeof(header));
}

absl::StatusOr<BlockFrame> DecodeFrameHeader(absl::Span<const uint8_t> bytes) {
  Header header;
  if (bytes.size() < sizeof(header)) return DataLoss("{} bytes are fewer than the {} of a frame's header", bytes.size(), sizeof(header));
  std::memcpy(&header, bytes.data(), sizeof(header));
  if (header.magic != kMagic) return DataLoss("a frame's magic is {:#x}, must be {:#x}", header.magic, kMagic);
  if (header.crc != CrcOf(header)) return DataLoss("the header of a frame has CRC32C {:08x}, {:08x} was stored with it", CrcOf(header), header.crc);
  if (header.weights_bytes > kMaxRecordBytes || header.state_bytes > kMaxRecordBytes)
    return DataLoss("a frame announces {} and {} bytes, allowed are {}", header.weights_bytes, header.state_bytes, kMaxRecordBytes);
  return BlockFrame{{header.level, header.cluster}, header.weights_bytes, header.state_bytes};
}

}  // namespace membank
