#include "model_worker/train/batch.h"

#include <random>

#include "gtest/gtest.h"
#include "tests/testing/tiny_spec.h"

namespace membank {
namespace {

// The paper's bank of 4.6B parameters beside its 160M anchor.
BankSpec PaperSpec() {
  BankSpec spec = testing_support::TinySpec();
  spec.fan_out = 16;
  spec.widths = {256, 64, 16};
  spec.layers = 35;
  spec.hidden = 512;
  spec.dtype = DType::kBF16;
  return spec;
}

TrainBatch BatchOf(const BankSpec& spec, uint32_t sequences) {
  std::mt19937 random(7);
  TrainBatch batch;
  for (uint32_t i = 0; i < sequences; ++i) {
    TrainSequence sequence;
    sequence.index = i;
    sequence.path.mode = random() % 17 == 0 ? MemoryMode::kGeneric : MemoryMode::kFetched;
    sequence.path.depth = 3;
    sequence.path.leaf = random() % 4096;
    sequence.data.tokens = {1, 2};
    sequence.data.document_ends = {2};
    batch.sequences.push_back(sequence);
  }
  FinishBatch(spec, &batch);
  return batch;
}

// Why ranks of one host need not add up their gradients of levels 1 and 2 before they push: cut along the sorted paths, eight of them push
// less than a twelfth more than one rank with the whole batch would.
TEST(TakePart, PartsShareFewBlocks) {
  const BankSpec spec = PaperSpec();
  const TrainBatch whole = BatchOf(spec, 1024);
  const auto bytes = [&](const TrainBatch& batch) {
    uint64_t sum = 0;
    for (const BlockId id : batch.blocks) sum += spec.BlockBytes(id.level);
    return sum;
  };
  for (const uint32_t ranks : {1u, 2u, 4u, 8u, 16u}) {
    uint64_t pushed = 0, sequences = 0;
    for (uint32_t rank = 0; rank < ranks; ++rank) {
      TrainBatch part = whole;
      TakePart(spec, rank, ranks, &part);
      pushed += bytes(part);
      sequences += part.sequences.size();
    }
    const double ratio = static_cast<double>(pushed) / static_cast<double>(bytes(whole));
    printf("%2u ranks push %.2f GB a step, %.3f of one rank's\n", ranks, static_cast<double>(pushed) / 1e9, ratio);
    EXPECT_EQ(sequences, 1024u);
    EXPECT_GE(ratio, 1.0);
    EXPECT_LE(ratio, 1.0 + 0.0105 * (ranks - 1));  // at most a block of each level for every cut
  }
}

}  // namespace
}  // namespace membank
