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

enum class MemoryType : uint8_t { kFfn = 0, kLoraQk = 1, kLoraVo = 2, kLoraFfn = 3, kKv = 4 };  // what a block holds: block_layout.h

// The sizes of an anchor that a bank beside it depends on.
struct AnchorShape {
  uint32_t layers = 0, hidden = 0;                         // L, d
  uint32_t heads = 0, kv_heads = 0, head_dim = 0;          // h, g, dh
  uint32_t ffn_inner = 0;                                  // df
  bool gated_ffn = true;                                   // gate and up beside each other
};

struct BankSpec {
  std::string bank_id;
  MemoryType type = MemoryType::kFfn;
  uint32_t fan_out = 0;                // k
  std::vector<uint32_t> widths;        // r_1..r_p; 0 = the level has no blocks
  uint32_t layers = 0;                 // L, of the anchor
  uint32_t hidden = 0;                 // d
  // Of the anchor, as far as the type depends on it, else 0: lora_qk and lora_vo need h, g, dh; kv h, dh; lora_ffn df.
  uint32_t heads = 0, kv_heads = 0, head_dim = 0;
  uint32_t ffn_inner = 0;
  std::vector<uint32_t> memory_layers; // the anchor's layers that have memory, ascending; empty: all
  DType dtype = DType::kBF16;          // of payloads (fetched weights): BF16 or F32
  uint64_t seed = 0;                   // of the initial values
  std::string anchor_fingerprint;      // hex; of the anchor the bank was trained beside
  std::string tree_fingerprint;        // hex; of the cluster tree that chooses its paths

  uint32_t depth() const { return static_cast<uint32_t>(widths.size()); }
  uint32_t width(uint32_t level) const { return widths[level - 1]; }
  uint32_t block_layers() const { return memory_layers.empty() ? layers : static_cast<uint32_t>(memory_layers.size()); }  // of a block
  uint32_t AnchorLayer(uint32_t block_layer) const { return memory_layers.empty() ? block_layer : memory_layers[block_layer]; }
  uint64_t UnitElements() const;                                // c0: of one unit of r; ffn over all layers: 3 * L * d
  uint64_t BlockElements(uint32_t level) const { return UnitElements() * width(level); }
  uint64_t BlockBytes(uint32_t level) const;                    // payload bytes
  uint64_t FetchedElements() const;                             // c0 * sum r_l
  uint64_t BankElements() const;                                // c0 * sum r_l k^l, without the generic blocks
  bool Contains(BlockId id) const;                              // the generic block counts

  // Blocks of `path`, levels with width 0 left out, shallow first. Empty for mode kNone.
  std::vector<BlockId> BlocksOf(const BlockPath& path) const;

  // Takes of the anchor what a bank of this type depends on.
  void SetAnchor(const AnchorShape& anchor);
  AnchorShape anchor_shape() const { return {layers, hidden, heads, kv_heads, head_dim, ffn_inner, true}; }
  // FAILED_PRECONDITION: the bank's blocks do not fit an anchor of that shape, or memory of its type has no place in it.
  absl::Status CheckFits(const AnchorShape& anchor) const;

  // Ranges: k 2..4096, 1..8 levels, k^p < 2^31, widths <= 65,536 and not all 0, layers 1..1024, hidden 1..65,536, one block < 2 GiB, ids non-empty;
  // what the type does not depend on is 0; memory_layers that are all layers are left out.
  absl::Status Validate() const;

  // Canonical JSON (sorted keys, no white space) and its XXH3-128 hash as 32 hex digits. Keys with zeros and empty memory_layers are left out.
  std::string ToJson() const;
  static absl::StatusOr<BankSpec> FromJson(const std::string& json);  // unknown keys are errors
  std::string Hash() const;
};

std::string_view MemoryTypeName(MemoryType type);
absl::StatusOr<MemoryType> ParseMemoryType(std::string_view name);

}  // namespace membank
