// Ids that differ wherever and whenever they are made: of runs, members, moves and heads. They have no part in any number. Any thread.
#pragma once

#include <cstdint>
#include <random>

namespace membank {

// 64 bits from the machine's source of randomness, never 0.
inline uint64_t RandomId() {
  std::random_device device;
  const uint64_t id = (uint64_t{device()} << 32) | device();
  return id != 0 ? id : 1;
}

}  // namespace membank
