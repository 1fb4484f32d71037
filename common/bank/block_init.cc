#include "common/bank/block_init.h"

#include <algorithm>
#include <cassert>
#include <cmath>
#include <vector>

#include "common/bank/block_layout.h"

namespace membank {
namespace {

// Philox4x32-10, John Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011; constants as in Random123's philox.h.
constexpr uint32_t kMultiplier0 = 0xD2511F53, kMultiplier1 = 0xCD9E8D57;
constexpr uint32_t kWeyl0 = 0x9E3779B9, kWeyl1 = 0xBB67AE85;
constexpr int kRounds = 10;

constexpr size_t kLanes = 16;  // counters worked on at once, so that the compiler vectorises each round

// The four output words of counters {first + i, 0, level, cluster}, i < kLanes, word-major.
void PhiloxLanes(uint32_t first, BlockId id, uint64_t seed, uint32_t (&c)[4][kLanes]) {
  for (size_t i = 0; i < kLanes; ++i) {
    c[0][i] = first + static_cast<uint32_t>(i);
    c[1][i] = 0;
    c[2][i] = id.level;
    c[3][i] = id.cluster;
  }
  uint32_t key0 = static_cast<uint32_t>(seed), key1 = static_cast<uint32_t>(seed >> 32);
  for (int round = 0; round < kRounds; ++round) {
    for (size_t i = 0; i < kLanes; ++i) {
      const uint64_t product0 = uint64_t{kMultiplier0} * c[0][i], product1 = uint64_t{kMultiplier1} * c[2][i];
      c[0][i] = static_cast<uint32_t>(product1 >> 32) ^ c[1][i] ^ key0;
      c[2][i] = static_cast<uint32_t>(product0 >> 32) ^ c[3][i] ^ key1;
      c[1][i] = static_cast<uint32_t>(product1);
      c[3][i] = static_cast<uint32_t>(product0);
    }
    key0 += kWeyl0;
    key1 += kWeyl1;
  }
}

// Inverse of the normal distribution function in the central region [0.02425, 0.97575], relative error 1.2e-9 in exact arithmetic
// (Peter Acklam, "An algorithm for computing the inverse normal cumulative distribution function"). Every 32-bit word maps into it.
inline float TruncatedNormal(uint32_t word) {
  constexpr float kCentral = static_cast<float>((1.0 - 2 * 0.02425) / 4294967296.0);
  const float q = static_cast<float>(static_cast<int32_t>(word)) * kCentral;  // in [-0.47575, 0.47575]
  const float r = q * q;
  const float numerator =
      (((((-3.969683028665376e+01f * r + 2.209460984245205e+02f) * r - 2.759285104469687e+02f) * r + 1.383577518672690e+02f) * r -
        3.066479806614716e+01f) * r + 2.506628277459239e+00f) * q;
  const float denominator =
      ((((-5.447609879822406e+01f * r + 1.615858368580409e+02f) * r - 1.556989798598866e+02f) * r + 6.680131188771972e+01f) * r -
       1.328068155288572e+01f) * r + 1.0f;
  return numerator / denominator;
}

// In [-1, 1].
inline float Uniform(uint32_t word) { return static_cast<float>(static_cast<int32_t>(word)) * 0x1p-31f; }

// Elements [begin, end) of the block: element e is word e % 4 of counter e / 4, drawn and scaled.
template <typename Draw>
void Fill(const BankSpec& spec, BlockId id, uint64_t begin, uint64_t end, float scale, Draw draw, float* values) {
  uint32_t words[4][kLanes];
  float drawn[4 * kLanes];
  for (uint64_t e = begin; e < end;) {
    const uint64_t counter = e / 4;
    PhiloxLanes(static_cast<uint32_t>(counter), id, spec.seed, words);
    for (size_t i = 0; i < kLanes; ++i)
      for (size_t word = 0; word < 4; ++word) drawn[4 * i + word] = draw(words[word][i]) * scale;
    const uint64_t offset = e - 4 * counter, count = std::min<uint64_t>(4 * kLanes - offset, end - e);
    std::copy_n(drawn + offset, count, values + (e - begin));
    e += count;
  }
}

// Layer `layer` of the block, UnitElements / block_layers * r values.
void InitLayer(const BankSpec& spec, BlockId id, uint32_t layer, float* values) {
  uint64_t begin = spec.BlockElements(id.level) / spec.block_layers() * layer;
  for (const BlockMatrix& matrix : MatricesOf(spec)) {
    const uint64_t end = begin + matrix.columns * spec.width(id.level);
    const float fan_in_scale = 1.0f / std::sqrt(static_cast<float>(matrix.columns));
    switch (matrix.initial) {
      case InitialValues::kZero:
        std::fill_n(values, end - begin, 0.0f);
        break;
      case InitialValues::kNormal:
        Fill(spec, id, begin, end, spec.type == MemoryType::kKv ? 1.0f : fan_in_scale, [](uint32_t word) { return TruncatedNormal(word); }, values);
        break;
      case InitialValues::kKaiming:
        Fill(spec, id, begin, end, fan_in_scale, [](uint32_t word) { return Uniform(word); }, values);
        break;
    }
    values += end - begin;
    begin = end;
  }
}

}  // namespace

std::array<uint32_t, 4> Philox4x32(std::array<uint32_t, 4> c, std::array<uint32_t, 2> key) {
  for (int round = 0; round < kRounds; ++round) {
    const uint64_t product0 = uint64_t{kMultiplier0} * c[0], product1 = uint64_t{kMultiplier1} * c[2];
    c = {static_cast<uint32_t>(product1 >> 32) ^ c[1] ^ key[0], static_cast<uint32_t>(product1),
         static_cast<uint32_t>(product0 >> 32) ^ c[3] ^ key[1], static_cast<uint32_t>(product0)};
    key[0] += kWeyl0;
    key[1] += kWeyl1;
  }
  return c;
}

void InitBlock(const BankSpec& spec, BlockId id, absl::Span<float> values) {
  assert(values.size() == spec.BlockElements(id.level));
  const uint64_t layer_elements = values.size() / spec.block_layers();
  for (uint32_t layer = 0; layer < spec.block_layers(); ++layer) InitLayer(spec, id, layer, values.data() + layer * layer_elements);
}

void InitBlockPayload(const BankSpec& spec, BlockId id, absl::Span<uint8_t> payload) {
  assert(payload.size() == spec.BlockBytes(id.level));
  std::vector<float> values(spec.BlockElements(id.level) / spec.block_layers());
  const uint64_t layer_bytes = payload.size() / spec.block_layers();
  for (uint32_t layer = 0; layer < spec.block_layers(); ++layer) {
    InitLayer(spec, id, layer, values.data());
    EncodePayload(values, spec.dtype, payload.subspan(layer * layer_bytes, layer_bytes));
  }
}

void EncodePayload(absl::Span<const float> values, DType dtype, absl::Span<uint8_t> payload) {
  assert(dtype == DType::kF32 || dtype == DType::kBF16);
  assert(payload.size() == values.size() * DTypeBytes(dtype));
  if (dtype == DType::kF32) {
    std::memcpy(payload.data(), values.data(), payload.size());
    return;
  }
  for (size_t i = 0; i < values.size(); ++i) {
    const uint16_t bits = FloatToBF16(values[i]);
    std::memcpy(payload.data() + 2 * i, &bits, 2);
  }
}

void DecodePayload(absl::Span<const uint8_t> payload, DType dtype, absl::Span<float> values) {
  assert(dtype == DType::kF32 || dtype == DType::kBF16);
  assert(payload.size() == values.size() * DTypeBytes(dtype));
  if (dtype == DType::kF32) {
    std::memcpy(values.data(), payload.data(), payload.size());
    return;
  }
  for (size_t i = 0; i < values.size(); ++i) {
    uint16_t bits;
    std::memcpy(&bits, payload.data() + 2 * i, 2);
    values[i] = BF16ToFloat(bits);
  }
}

}  // namespace membank
