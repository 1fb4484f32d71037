#include "memory_server/gradients.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "common/bank/gradient_codec.h"
#include "common/base/status_macros.h"

namespace membank {
namespace {

constexpr uint64_t kChunkElements = 4096;  // worked on at once; they stay in the first-level cache

uint64_t RowsAtOnce(BlockShape shape) { return std::max<uint64_t>(1, kChunkElements / shape.row); }

// Calls visit(first row, rows, floats) over the whole gradient.
template <typename Visit>
void ForEachRows(const Gradient& gradient, BlockShape shape, const Visit& visit) {
  const uint64_t rows_at_once = RowsAtOnce(shape);
  GradientReader reader(gradient, shape, rows_at_once);
  for (uint64_t row = 0; row < shape.rows; row += rows_at_once) {
    const uint64_t rows = std::min(rows_at_once, shape.rows - row);
    visit(row, rows, reader.Rows(row, rows));
  }
}

float ElementAt(DType dtype, const uint8_t* bytes, uint64_t i) {
  float value;
  uint16_t half;
  if (dtype == DType::kBF16) return std::memcpy(&half, bytes + 2 * i, 2), BF16ToFloat(half);
  return std::memcpy(&value, bytes + 4 * i, 4), value;
}

absl::Status CheckScales(uint64_t rows, const uint8_t* bytes) {
  for (uint64_t r = 0; r < rows; ++r) {
    const float scale = ElementAt(DType::kF32, bytes, r);
    if (!std::isfinite(scale * 128.0f))
      return InvalidArgument("gradient row {} has the scale {}, 128 times it must be finite", r, scale);
  }
  return absl::OkStatus();
}

Gradient ToF32(BlockShape shape, Gradient gradient) {
  if (gradient.dtype == DType::kF32) return gradient;
  Gradient converted{DType::kF32, Buffer(shape.elements() * sizeof(float))};
  float* const out = reinterpret_cast<float*>(converted.bytes.data());
  ForEachRows(gradient, shape, [&](uint64_t row, uint64_t rows, const float* values) {
    std::copy_n(values, rows * shape.row, out + row * shape.row);
  });
  return converted;
}

}  // namespace

GradientReader::GradientReader(const Gradient& gradient, BlockShape shape, uint64_t rows_at_once, const UpdateLoops& loops)
    : gradient_(gradient), shape_(shape), loops_(loops), decoded_(gradient.dtype == DType::kF32 ? 0 : rows_at_once * shape.row) {}

const float* GradientReader::Rows(uint64_t first, uint64_t count) {
  const uint8_t* const bytes = gradient_.bytes.data();
  const uint64_t element = first * shape_.row, n = count * shape_.row;
  if (gradient_.dtype == DType::kF32) return reinterpret_cast<const float*>(bytes) + element;
  if (gradient_.dtype == DType::kBF16) {
    loops_.decode_bf16(n, reinterpret_cast<const uint16_t*>(bytes) + element, decoded_.data());
  } else {
    const int8_t* const quantised = reinterpret_cast<const int8_t*>(bytes) + shape_.rows * sizeof(float);
    loops_.decode_int8_rows(count, shape_.row, reinterpret_cast<const float*>(bytes) + first, quantised + element, decoded_.data());
  }
  return decoded_.data();
}

absl::Status CheckFinite(DType dtype, BlockShape shape, absl::Span<const uint8_t> bytes) {
  if (dtype == kI8Rows) return CheckScales(shape.rows, bytes.data());
  const auto all_finite = dtype == DType::kBF16 ? Loops().finite_bf16 : Loops().finite_f32;
  const uint64_t element = DTypeBytes(dtype);
  for (uint64_t first = 0; first < shape.elements(); first += kChunkElements) {
    const uint64_t n = std::min(kChunkElements, shape.elements() - first);
    if (all_finite(n, bytes.data() + first * element)) continue;
    uint64_t bad = first;
    while (std::isfinite(ElementAt(dtype, bytes.data(), bad))) ++bad;
    return InvalidArgument("gradient element {} is {}, must be finite", bad, ElementAt(dtype, bytes.data(), bad));
  }
  return absl::OkStatus();
}

void AddContribution(BlockShape shape, const Gradient& gradient, float* sum) {
  ForEachRows(gradient, shape, [&](uint64_t row, uint64_t rows, const float* values) {
    Loops().add(rows * shape.row, values, sum + row * shape.row);
  });
}

Gradient SumContributions(BlockShape shape, std::vector<Gradient> contributions) {
  if (contributions.size() == 1) return std::move(contributions[0]);
  Gradient sum = ToF32(shape, std::move(contributions[0]));
  sum.sum_of_squares.reset();
  float* const total = reinterpret_cast<float*>(sum.bytes.data());
  for (size_t i = 1; i < contributions.size(); ++i) {
    AddContribution(shape, contributions[i], total);
    contributions[i] = Gradient();
  }
  return sum;
}

void SquareSum::Extend(const Gradient& gradient, uint64_t received) {
  const UpdateLoops& loops = Loops();
  if (gradient.dtype == kI8Rows) {  // its scales come first, so nothing is known of any row before
    if (received < gradient.bytes.size()) return;
    ForEachRows(gradient, shape_, [&](uint64_t, uint64_t rows, const float* values) { loops.add_squares(rows * shape_.row, values, lanes_); });
    return;
  }
  const uint64_t n = shape_.elements(), there = received / DTypeBytes(gradient.dtype);
  const uint64_t portion = RowsAtOnce(shape_) * shape_.row;
  for (uint64_t end; added_ < n && (end = std::min(n, added_ + portion)) <= there; added_ = end) {
    const uint8_t* const values = gradient.bytes.data() + added_ * DTypeBytes(gradient.dtype);
    if (gradient.dtype == DType::kBF16) loops.add_squares_bf16(end - added_, reinterpret_cast<const uint16_t*>(values), lanes_);
    else loops.add_squares(end - added_, reinterpret_cast<const float*>(values), lanes_);
  }
}

double SquareSum::Get() const { return std::accumulate(std::begin(lanes_), std::end(lanes_), 0.0); }

double SumOfSquares(BlockShape shape, const Gradient& gradient) {
  SquareSum sum(shape);
  sum.Extend(gradient, gradient.bytes.size());
  return sum.Get();
}

}  // namespace membank
