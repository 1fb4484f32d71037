#include "common/bank/payload.h"

#include <cassert>
#include <cmath>
#include <cstring>
#include <vector>

#include "common/bank/block_init.h"
#include "common/bank/block_layout.h"
#include "common/bank/gradient_codec.h"
#include "common/base/status_macros.h"

namespace membank {
namespace {

BlockShape LayerShape(const BankSpec& spec, uint32_t level) {
  const BlockShape block = ShapeOf(spec, level);
  return {block.rows / spec.block_layers(), block.row};
}

float ScaleAt(const uint8_t* layer, uint64_t row) {
  float scale;
  std::memcpy(&scale, layer + row * sizeof(scale), sizeof(scale));
  return scale;
}

}  // namespace

uint64_t PayloadBytes(const BankSpec& spec, uint32_t level, PayloadType type) {
  return type == PayloadType::kBank ? spec.BlockBytes(level) : GradientBytes(membank::kI8Rows, ShapeOf(spec, level));
}

bool Int8IsSmaller(const BankSpec& spec) {
  const uint64_t row = ShapeOf(spec, 1).row;
  return row + sizeof(float) < row * DTypeBytes(spec.dtype);
}

std::string_view PayloadTypeName(const BankSpec& spec, PayloadType type) { return type == PayloadType::kBank ? DTypeName(spec.dtype) : "I8_ROWS"; }

absl::Status QuantisePayload(const BankSpec& spec, uint32_t level, absl::Span<const uint8_t> payload, absl::Span<uint8_t> out) {
  assert(payload.size() == spec.BlockBytes(level) && out.size() == PayloadBytes(spec, level, PayloadType::kI8Rows));
  const BlockShape shape = LayerShape(spec, level);
  const uint64_t from_bytes = LayerBytes(spec, level, PayloadType::kBank), to_bytes = LayerBytes(spec, level, PayloadType::kI8Rows);
  std::vector<float> values(shape.elements());
  for (uint32_t layer = 0; layer < spec.block_layers(); ++layer) {
    const absl::Span<uint8_t> to = out.subspan(layer * to_bytes, to_bytes);
    DecodePayload(payload.subspan(layer * from_bytes, from_bytes), spec.dtype, absl::MakeSpan(values));
    EncodeInt8Rows(shape, absl::MakeSpan(values), to);
    for (uint64_t row = 0; row < shape.rows; ++row)
      if (!std::isfinite(ScaleAt(to.data(), row)))
        return FailedPrecondition("row {} of layer {} holds NaN or infinity, which int8 cannot say", row, spec.AnchorLayer(layer));
  }
  return absl::OkStatus();
}

void DequantisePayload(const BankSpec& spec, uint32_t level, absl::Span<const uint8_t> payload, absl::Span<float> values) {
  assert(payload.size() == PayloadBytes(spec, level, PayloadType::kI8Rows) && values.size() == spec.BlockElements(level));
  const BlockShape shape = LayerShape(spec, level);
  const uint64_t layer_bytes = LayerBytes(spec, level, PayloadType::kI8Rows);
  for (uint32_t layer = 0; layer < spec.block_layers(); ++layer) {
    const uint8_t* const from = payload.data() + layer * layer_bytes;
    const int8_t* const quantised = reinterpret_cast<const int8_t*>(from) + shape.rows * sizeof(float);
    float* const to = values.data() + layer * shape.elements();
    for (uint64_t row = 0; row < shape.rows; ++row) {
      const float scale = ScaleAt(from, row);
      const int8_t* __restrict in = quantised + row * shape.row;
      float* __restrict out = to + row * shape.row;
      for (uint64_t i = 0; i < shape.row; ++i) out[i] = static_cast<float>(in[i]) * scale;
    }
  }
}

}  // namespace membank
