// The "k-quants" of GGUF files: super-blocks of 256 elements whose sub-blocks of 16 or 32 have small integer scales under one or two
// halves. Each writes blocks * 256 floats. Pure functions.
//
// Every product of a half, a scale and a quantum has at most 24 significant bits, so it is exact in float: whether the compiler fuses the
// subtraction that follows or not, the floats are bit-equal to gguf-py's.
#pragma once

#include <cstddef>
#include <cstdint>

namespace membank {

void DequantizeQ2_K(const uint8_t* in, size_t blocks, float* out);
void DequantizeQ3_K(const uint8_t* in, size_t blocks, float* out);
void DequantizeQ4_K(const uint8_t* in, size_t blocks, float* out);
void DequantizeQ5_K(const uint8_t* in, size_t blocks, float* out);
void DequantizeQ6_K(const uint8_t* in, size_t blocks, float* out);

}  // namespace membank
