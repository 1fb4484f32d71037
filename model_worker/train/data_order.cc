#include "model_worker/train/data_order.h"

#include <numeric>
#include <utility>

#include "common/bank/block_init.h"

namespace membank {
namespace {

// Streams of one seed; any two distinct constants.
constexpr uint32_t kShuffleStream = 0x6f726472;  // "ordr"
constexpr uint32_t kGenericStream = 0x67656e72;  // "genr"

// 64 random bits for (seed, stream, a, b).
uint64_t Random(uint64_t seed, uint32_t stream, uint64_t a, uint32_t b) {
  const auto r = Philox4x32({static_cast<uint32_t>(a), static_cast<uint32_t>(a >> 32), b, stream},
                            {static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)});
  return (uint64_t{r[1]} << 32) | r[0];
}

}  // namespace

DataOrder::DataOrder(uint64_t seed, uint64_t size, double generic_probability)
    : seed_(seed), size_(size), generic_probability_(generic_probability) {}

uint64_t DataOrder::IndexOf(uint64_t sample) {
  if (sample / size_ != epoch_) Shuffle(sample / size_);
  return permutation_[sample % size_];
}

bool DataOrder::UsesGeneric(uint64_t sample) const {
  return static_cast<double>(Random(seed_, kGenericStream, sample, 0) >> 11) * 0x1p-53 < generic_probability_;
}

void DataOrder::Shuffle(uint64_t epoch) {
  epoch_ = epoch;
  permutation_.resize(size_);
  std::iota(permutation_.begin(), permutation_.end(), uint64_t{0});
  for (uint64_t i = size_ - 1; i > 0; --i) {  // Fisher-Yates; the bias of the multiply-shift is below 2^-32 for any real corpus
    const unsigned __int128 wide = static_cast<unsigned __int128>(Random(seed_, kShuffleStream, i, static_cast<uint32_t>(epoch))) * (i + 1);
    std::swap(permutation_[i], permutation_[static_cast<uint64_t>(wide >> 64)]);
  }
}

}  // namespace membank
