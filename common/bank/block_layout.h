// How an ffn block's payload lies in memory: layer-major, so that one layer is one contiguous range. Layer j is
//   gate W1 [r, d] | up W2 [r, d] | down W3 transposed [r, d]      row-major, little-endian, of the bank's dtype.
#pragma once

#include <cstdint>

#include "common/bank/bank_spec.h"

namespace membank {

// A block as rows: row u of a matrix belongs to inner unit u. What is kept per row, is kept for one matrix of one unit of one layer.
struct BlockShape {
  uint64_t rows = 0, row = 0;   // row: elements of one
  uint64_t elements() const { return rows * row; }
  bool operator==(const BlockShape&) const = default;
};

inline BlockShape ShapeOf(const BankSpec& spec, uint32_t level) { return {spec.BlockElements(level) / spec.hidden, spec.hidden}; }

struct FfnLayerRange {   // element offsets into the block
  uint64_t gate, up, down, end;
};

inline FfnLayerRange FfnLayer(const BankSpec& spec, uint32_t level, uint32_t layer) {
  const uint64_t matrix = uint64_t{spec.width(level)} * spec.hidden;
  const uint64_t begin = layer * 3 * matrix;
  return {begin, begin + matrix, begin + 2 * matrix, begin + 3 * matrix};
}

}  // namespace membank
