// CRC32C (Castagnoli) of block payloads, from write to use (promise P4). SSE4.2, three interleaved streams; Debian's RocksDB has only
// the software version. Pure functions, any thread.
#pragma once

#include <cstddef>
#include <cstdint>

namespace membank {

// Crc32c("123456789") == 0xE3069283. ExtendCrc32c(Crc32c(a), b) == Crc32c(a + b).
uint32_t ExtendCrc32c(uint32_t crc, const void* data, size_t size);
inline uint32_t Crc32c(const void* data, size_t size) { return ExtendCrc32c(0, data, size); }

}  // namespace membank
