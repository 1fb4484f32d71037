// The payload of an untouched block: a pure function of (seed, level, cluster) through Philox4x32-10, equal on every machine, so that a
// bank needs no initialisation pass and a block that nothing was learned into has no effect (mission/paper.md section 3). Of the matrices of
// block_layout.h, each [r, columns],
//   gate and up of ffn          are truncated normal with standard deviation 1/sqrt(d), cut at about +-1.97 sigma: the central region of
//                               Acklam's inverse CDF, which needs only + - * / (no libm, no FMA, hence the same bits everywhere);
//   keys of kv                  the same with standard deviation 1, so that the scores of a query spread as its own length does;
//   a_... of the LoRA types     Kaiming uniform as LoRA's authors have it (a = sqrt 5): +-1/sqrt(columns), where columns is the fan-in;
//   down, values, b_...         zero.
// Pure functions, any thread.
#pragma once

#include <array>
#include <cstdint>

#include "absl/types/span.h"
#include "common/bank/bank_spec.h"

namespace membank {

// Philox4x32-10 (Salmon et al. 2011), known-answer tested.
std::array<uint32_t, 4> Philox4x32(std::array<uint32_t, 4> counter, std::array<uint32_t, 2> key);

// Fills `values` (BlockElements(level) floats) with the initial fp32 values.
void InitBlock(const BankSpec& spec, BlockId id, absl::Span<float> values);
// The same, rounded to the bank's dtype, as payload bytes (BlockBytes(level)).
void InitBlockPayload(const BankSpec& spec, BlockId id, absl::Span<uint8_t> payload);

// fp32 -> payload bytes of `dtype` (F32 or BF16, round to nearest even), and back.
void EncodePayload(absl::Span<const float> values, DType dtype, absl::Span<uint8_t> payload);
void DecodePayload(absl::Span<const uint8_t> payload, DType dtype, absl::Span<float> values);

}  // namespace membank
