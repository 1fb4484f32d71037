#include "memory_server/gradients.h"

#include <array>

#include "common/bank/block_init.h"
#include "common/base/status_macros.h"

namespace membank {
namespace {

constexpr size_t kChunk = 4096;  // elements converted at once; they stay in the first-level cache

// Calls visit(first element, floats) over the whole gradient, chunk by chunk.
template <typename Visit>
void ForEachChunk(const Gradient& gradient, const Visit& visit) {
  const size_t element = DTypeBytes(gradient.dtype), count = gradient.bytes.size() / element;
  std::array<float, kChunk> values;
  for (size_t first = 0; first < count; first += kChunk) {
    const size_t n = std::min(kChunk, count - first);
    DecodePayload(gradient.bytes.span().subspan(first * element, n * element), gradient.dtype, absl::MakeSpan(values.data(), n));
    visit(first, absl::MakeConstSpan(values.data(), n));
  }
}

// An element is finite when its exponent is not all ones.
template <typename Word, Word kExponent>
bool AllFinite(const uint8_t* bytes, size_t count) {
  Word bad = 0;
  for (size_t i = 0; i < count; ++i) {
    Word word;
    std::memcpy(&word, bytes + i * sizeof(Word), sizeof(Word));
    bad |= static_cast<Word>((word & kExponent) == kExponent);
  }
  return bad == 0;
}

bool AllFinite(DType dtype, const uint8_t* bytes, size_t count) {
  return dtype == DType::kBF16 ? AllFinite<uint16_t, 0x7f80>(bytes, count) : AllFinite<uint32_t, 0x7f800000>(bytes, count);
}

Gradient ToF32(Gradient gradient) {
  if (gradient.dtype == DType::kF32) return gradient;
  const size_t count = gradient.bytes.size() / DTypeBytes(gradient.dtype);
  Gradient converted{DType::kF32, Buffer(count * sizeof(float))};
  DecodePayload(gradient.bytes.span(), gradient.dtype, absl::MakeSpan(reinterpret_cast<float*>(converted.bytes.data()), count));
  return converted;
}

void AddTo(Gradient* sum, const Gradient& gradient) {
  sum->sum_of_squares.reset();
  float* const total = reinterpret_cast<float*>(sum->bytes.data());
  ForEachChunk(gradient, [&](size_t first, absl::Span<const float> values) {
    for (size_t i = 0; i < values.size(); ++i) total[first + i] += values[i];
  });
}

}  // namespace

uint64_t BytesOf(const RankGradients& gradients) {
  uint64_t bytes = 0;
  for (const auto& [id, gradient] : gradients) bytes += gradient.bytes.size();
  return bytes;
}

absl::Status CheckFinite(DType dtype, absl::Span<const uint8_t> bytes) {
  const size_t element = DTypeBytes(dtype), count = bytes.size() / element;
  for (size_t first = 0; first < count; first += kChunk) {
    const size_t n = std::min(kChunk, count - first);
    if (AllFinite(dtype, bytes.data() + first * element, n)) continue;
    size_t bad = first;
    while (AllFinite(dtype, bytes.data() + bad * element, 1)) ++bad;
    float value;
    DecodePayload(bytes.subspan(bad * element, element), dtype, absl::MakeSpan(&value, 1));
    return InvalidArgument("gradient element {} is {}, must be finite", bad, value);
  }
  return absl::OkStatus();
}

RankGradients SumRanks(std::vector<RankGradients> ranks) {
  RankGradients sum;
  for (RankGradients& rank : ranks) {
    for (auto& [id, gradient] : rank) {
      const auto [it, first] = sum.try_emplace(id);
      if (first) {
        it->second = std::move(gradient);
      } else {
        it->second = ToF32(std::move(it->second));
        AddTo(&it->second, gradient);
      }
    }
    rank.clear();
  }
  return sum;
}

double SumOfSquares(const Gradient& gradient) {
  constexpr size_t kLanes = 16;  // divides kChunk: an element's lane is its index modulo 16
  std::array<double, kLanes> lanes{};
  ForEachChunk(gradient, [&](size_t, absl::Span<const float> values) {
    size_t i = 0;
    for (; i + kLanes <= values.size(); i += kLanes)
      for (size_t lane = 0; lane < kLanes; ++lane) lanes[lane] += double{values[i + lane]} * values[i + lane];
    for (; i < values.size(); ++i) lanes[i % kLanes] += double{values[i]} * values[i];
  });
  double sum = 0;
  for (double lane : lanes) sum += lane;
  return sum;
}

}  // namespace membank
