#include "common/bank/block_layout.h"

#include <gtest/gtest.h>

#include "tests/testing/typed_spec.h"

namespace membank {
namespace {

using testing_support::TypedSpec;

TEST(BlockLayout, FfnLayersAreContiguousAndCoverTheBlock) {
  const BankSpec spec = TypedSpec(MemoryType::kFfn);
  uint64_t next = 0;
  for (uint32_t layer = 0; layer < spec.layers; ++layer) {
    const FfnLayerRange range = FfnLayer(spec, 2, layer);
    EXPECT_EQ(range.gate, next);
    EXPECT_EQ(range.up - range.gate, 3u * 24);
    EXPECT_EQ(range.down - range.up, 3u * 24);
    next = range.end;
  }
  EXPECT_EQ(next, spec.BlockElements(2));
}

TEST(BlockLayout, RowsDivideTheMatricesOfEveryType) {
  const std::pair<MemoryType, uint64_t> rows[] = {
      {MemoryType::kFfn, 24}, {MemoryType::kLoraQk, 8}, {MemoryType::kLoraVo, 8}, {MemoryType::kLoraFfn, 12}, {MemoryType::kKv, 32}};
  for (const auto& [type, row] : rows) {
    const BankSpec spec = TypedSpec(type);
    ASSERT_TRUE(spec.Validate().ok()) << spec.Validate();
    const BlockShape shape = ShapeOf(spec, 1);
    EXPECT_EQ(shape.row, row) << MemoryTypeName(type);
    EXPECT_EQ(shape.elements(), spec.BlockElements(1));
    for (const BlockMatrix& matrix : MatricesOf(spec)) EXPECT_EQ(matrix.columns % row, 0u) << matrix.name;
  }
}

}  // namespace
}  // namespace membank
