// The tensor types of GGUF files (ggml.h, enum ggml_type): their sizes, and the conversion to floats of those membank reads.
// Pure functions.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

namespace membank {

struct GgmlType {
  uint32_t id;
  std::string_view name;
  size_t block_elements;   // elements that are stored together
  size_t block_bytes;
  void (*dequantize)(const uint8_t* in, size_t blocks, float* out);   // null when membank cannot convert the type
};

// Null for a number that ggml does not define.
const GgmlType* FindGgmlType(uint32_t id);
inline constexpr std::string_view kSupportedGgmlTypes = "F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K";

}  // namespace membank
