// How a block's payload lies in memory: layer-major over the layers that have memory, so that one layer is one contiguous range; of a layer
// the matrices of MatricesOf one after the other, each [r, columns], row-major, little-endian, of the bank's dtype. Row u of every matrix
// belongs to unit u of the width r. With x the layer's normed input, Q = h dh, G = g dh (g = h unless queries share keys), a layer holds
//   ffn       gate W1 [d] | up W2 [d] | down W3 transposed [d]
//   lora_qk   a_q [d] | a_k [d] | b_q [Q] | b_k [G]                    q += 2 (x a_q^T) b_q, k += 2 (x a_k^T) b_k
//   lora_vo   a_v [d] | b_v [G] | a_o [Q] | b_o [d]                    v += 2 (x a_v^T) b_v, o(y) += 2 (y a_o^T) b_o
//   lora_ffn  a_gate [d] | a_up [d] | b_gate [df] | b_up [df] | a_down [df] | b_down [d]
//   kv        keys [Q] | values [Q]
// which are the sizes of the paper's table (mission/paper.md section 3) where g = h; with fewer key-value heads the LoRA of k and v is as
// narrow as those projections. A kv unit has a key and a value for every query head, also where the anchor's queries share keys: the paper's
// size 2 L h dh holds for every anchor, and nothing is gained by sharing, since memory is no cache that grows with the text.
// LoRA is applied with the constant scale 2 (the paper's "scale 2"), not divided by the rank: the ranks of the levels add, so that a level
// has the same effect whatever lies beside it, and the sum over levels equals the LoRA of the concatenated matrices.
#pragma once

#include <cstdint>
#include <string_view>

#include "absl/container/inlined_vector.h"
#include "common/bank/bank_spec.h"

namespace membank {

// How the elements of an untouched matrix are distributed: block_init.h.
enum class InitialValues : uint8_t { kZero, kNormal, kKaiming };

struct BlockMatrix {
  std::string_view name;
  uint64_t columns = 0;
  InitialValues initial = InitialValues::kZero;
};
using BlockMatrices = absl::InlinedVector<BlockMatrix, 6>;

BlockMatrices MatricesOf(MemoryType type, const AnchorShape& anchor);
inline BlockMatrices MatricesOf(const BankSpec& spec) { return MatricesOf(spec.type, spec.anchor_shape()); }

// A block as rows of one length. A row is a matrix's row, or a part of it where the matrices of a type differ in width: the longest that
// divides them all. What is kept per row (second moments, scales of int8), is kept for so many elements of one unit of one layer.
struct BlockShape {
  uint64_t rows = 0, row = 0;   // row: elements of one
  uint64_t elements() const { return rows * row; }
  bool operator==(const BlockShape&) const = default;
};

BlockShape ShapeOf(const BankSpec& spec, uint32_t level);

struct FfnLayerRange {   // of an ffn block: element offsets
  uint64_t gate, up, down, end;
};

inline FfnLayerRange FfnLayer(const BankSpec& spec, uint32_t level, uint32_t layer) {
  const uint64_t matrix = uint64_t{spec.width(level)} * spec.hidden;
  const uint64_t begin = layer * 3 * matrix;
  return {begin, begin + matrix, begin + 2 * matrix, begin + 3 * matrix};
}

}  // namespace membank
