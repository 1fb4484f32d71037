// Documents -> windows -> training sequences. Pure functions; the same inputs and seed give the same result.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/types/span.h"
#include "common/corpus/packed.h"

namespace membank {

// A piece of a document that fits a sequence: tokens [begin, end) of the document with its EOT.
struct WindowRange {
  uint32_t begin = 0, end = 0;
};

// Splits `tokens` (the EOT counts) into windows of sequence_length; the last two share what is left evenly when the last would be shorter
// than half, so that no window is too short to be embedded on its own.
std::vector<WindowRange> SplitIntoWindows(uint32_t tokens, uint32_t sequence_length);

struct Window {
  uint32_t leaf = 0;
  std::vector<int32_t> tokens;
};

// Windows of one leaf are put together into sequences of at most sequence_length tokens (best fit, in shuffled order), then all sequences
// are shuffled.
std::vector<PackedSequence> PackWindows(std::vector<Window> windows, uint32_t sequence_length, uint64_t seed);

}  // namespace membank
