// The facts of a bank: everything that decides the size, layout and initial value of its blocks. Immutable once a bank exists; its
// canonical serialisation has a hash that every client and server compares when they meet (design/wire.md section 1).
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "common/bank/block.h"
#include "common/tensors/dtype.h"

namespace membank {

enum class MemoryType : uint8_t { kFfn = 0, kLoraQk = 1, kLoraVo = 2, kLoraFfn = 3, kKv = 4 };  // only kFfn is built so far

struct BankSpec {
  std::string bank_id;
  MemoryType type = MemoryType::kFfn;
  uint32_t fan_out = 0;                // k
  std::vector<uint32_t> widths;        // r_1..r_p; 0 = the level has no blocks
  uint32_t layers = 0;                 // L
  uint32_t hidden = 0;                 // d
  DType dtype = DType::kBF16;          // of payloads (fetched weights): BF16 or F32
  uint64_t seed = 0;                   // of the initial values
  std::string anchor_fingerprint;      // hex; of the anchor the bank was trained beside
  std::string tree_fingerprint;        // hex; of the cluster tree that chooses its paths

  uint32_t depth() const { return static_cast<uint32_t>(widths.size()); }
  uint32_t width(uint32_t level) const { return widths[level - 1]; }
  uint64_t BlockElements(uint32_t level) const;                 // c0 * r_l; ffn: 3 * L * d * r_l
  uint64_t BlockBytes(uint32_t level) const;                    // payload bytes
  uint64_t FetchedElements() const;                             // c0 * sum r_l
  uint64_t BankElements() const;                                // c0 * sum r_l k^l, without the generic blocks
  bool Contains(BlockId id) const;                              // the generic block counts

  // Blocks of `path`, levels with width 0 left out, shallow first. Empty for mode kNone.
  std::vector<BlockId> BlocksOf(const BlockPath& path) const;

  // Ranges: k 2..4096, 1..8 levels, k^p < 2^31, widths <= 65,536 and not all 0, layers 1..1024, hidden 1..65,536, one block < 2 GiB, ids non-empty.
  absl::Status Validate() const;

  // Canonical JSON (sorted keys, no white space) and its XXH3-128 hash as 32 hex digits.
  std::string ToJson() const;
  static absl::StatusOr<BankSpec> FromJson(const std::string& json);  // unknown keys are errors
  std::string Hash() const;
};

std::string_view MemoryTypeName(MemoryType type);
absl::StatusOr<MemoryType> ParseMemoryType(std::string_view name);

}  // namespace membank
