// Which sequence is trained when: a seeded permutation of the corpus per epoch, and for each sample whether it uses the generic memory.
// Both are pure functions of (seed, sample number), so the data position of a run is one number and there is no generator state to save.
// Counter-based random numbers: Philox4x32-10 (common/bank/block_init.h). One thread.
#pragma once

#include <cstdint>
#include <vector>

namespace membank {

class DataOrder {
 public:
  // `size` >= 1 sequences.
  DataOrder(uint64_t seed, uint64_t size, double generic_probability);

  // The corpus index of sample `n`, counting from 0 over all epochs.
  uint64_t IndexOf(uint64_t sample);
  bool UsesGeneric(uint64_t sample) const;

 private:
  void Shuffle(uint64_t epoch);

  const uint64_t seed_, size_;
  const double generic_probability_;
  uint64_t epoch_ = ~uint64_t{0};
  std::vector<uint64_t> permutation_;  // of epoch_
};

}  // namespace membank
