#include "common/bank/block_layout.h"

#include <numeric>

namespace membank {

BlockMatrices MatricesOf(MemoryType type, const AnchorShape& anchor) {
  constexpr InitialValues kZero = InitialValues::kZero, kNormal = InitialValues::kNormal, kKaiming = InitialValues::kKaiming;
  const uint64_t d = anchor.hidden, df = anchor.ffn_inner, q = uint64_t{anchor.heads} * anchor.head_dim, kv = uint64_t{anchor.kv_heads} * anchor.head_dim;
  switch (type) {
    case MemoryType::kFfn:
      return {{"gate", d, kNormal}, {"up", d, kNormal}, {"down", d, kZero}};
    case MemoryType::kLoraQk:
      return {{"a_q", d, kKaiming}, {"a_k", d, kKaiming}, {"b_q", q, kZero}, {"b_k", kv, kZero}};
    case MemoryType::kLoraVo:
      return {{"a_v", d, kKaiming}, {"b_v", kv, kZero}, {"a_o", q, kKaiming}, {"b_o", d, kZero}};
    case MemoryType::kLoraFfn:
      return {{"a_gate", d, kKaiming}, {"a_up", d, kKaiming}, {"b_gate", df, kZero}, {"b_up", df, kZero}, {"a_down", df, kKaiming}, {"b_down", d, kZero}};
    case MemoryType::kKv:
      return {{"keys", q, kNormal}, {"values", q, kZero}};
  }
  return {};
}

BlockShape ShapeOf(const BankSpec& spec, uint32_t level) {
  uint64_t row = 0;
  for (const BlockMatrix& matrix : MatricesOf(spec)) row = std::gcd(row, matrix.columns);
  return {spec.BlockElements(level) / row, row};
}

}  // namespace membank
