// CRC32C (Castagnoli) of block payloads, from write to use (promise P4). Carry-less multiplication over 512-bit words where the CPU has it,
// else SSE4.2 in three interleaved streams; Debian's RocksDB has only the software version. Pure functions, any thread.
#pragma once

#include <cstddef>
#include <cstdint>

namespace membank {

// Crc32c("123456789") == 0xE3069283. ExtendCrc32c(Crc32c(a), b) == Crc32c(a + b).
uint32_t ExtendCrc32c(uint32_t crc, const void* data, size_t size);
inline uint32_t Crc32c(const void* data, size_t size) { return ExtendCrc32c(0, data, size); }

// memcpy and ExtendCrc32c of what was copied, in one pass.
uint32_t CopyAndExtendCrc32c(uint32_t crc, void* to, const void* from, size_t size);

// One way to compute it, for the tests: ExtendCrc32c takes the first that the CPU has. With `to` null nothing is copied.
struct Crc32cWay {
  const char* name;
  bool (*supported)();
  uint32_t (*copy_and_extend)(uint32_t crc, uint8_t* to, const uint8_t* from, size_t size);
};
inline constexpr int kCrc32cWays = 2;
const Crc32cWay& GetCrc32cWay(int i);

}  // namespace membank
