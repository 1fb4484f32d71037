#include "common/base/hash.h"

#include <xxhash.h>

#include "fmt/format.h"

namespace membank {
namespace {

std::string Hex128(XXH128_hash_t hash) { return fmt::format("{:016x}{:016x}", hash.high64, hash.low64); }

}  // namespace

uint64_t Hash64(std::string_view bytes) { return XXH3_64bits(bytes.data(), bytes.size()); }
std::string Hash64Hex(std::string_view bytes) { return fmt::format("{:016x}", Hash64(bytes)); }
std::string Hash128Hex(std::string_view bytes) { return Hex128(XXH3_128bits(bytes.data(), bytes.size())); }

Hasher::Hasher() : state_(XXH3_createState()) { XXH3_128bits_reset(static_cast<XXH3_state_t*>(state_)); }
Hasher::~Hasher() { XXH3_freeState(static_cast<XXH3_state_t*>(state_)); }

Hasher& Hasher::Add(std::string_view bytes) {
  Add(static_cast<uint64_t>(bytes.size()));
  XXH3_128bits_update(static_cast<XXH3_state_t*>(state_), bytes.data(), bytes.size());
  return *this;
}

Hasher& Hasher::Add(uint64_t number) {
  XXH3_128bits_update(static_cast<XXH3_state_t*>(state_), &number, sizeof(number));
  return *this;
}

std::string Hasher::Hex() const { return Hex128(XXH3_128bits_digest(static_cast<const XXH3_state_t*>(state_))); }

}  // namespace membank
