// XXH3 hashes of bytes: fingerprints of files, specs and corpora, and checksums of work files. Not cryptographic. Pure functions; one
// Hasher per thread.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace membank {

uint64_t Hash64(std::string_view bytes);
std::string Hash64Hex(std::string_view bytes);    // 16 hex digits
std::string Hash128Hex(std::string_view bytes);   // 32 hex digits

// The same 128 bits over pieces. Add() of a string puts its length in front, so that ("ab", "c") and ("a", "bc") differ.
class Hasher {
 public:
  Hasher();
  ~Hasher();
  Hasher(const Hasher&) = delete;
  Hasher& operator=(const Hasher&) = delete;

  Hasher& Add(std::string_view bytes);
  Hasher& Add(uint64_t number);
  std::string Hex() const;

 private:
  void* state_;  // XXH3_state_t
};

}  // namespace membank
