// Small valid specs of every memory type; the matrices of the LoRA types differ in width.
#pragma once

#include "common/bank/bank_spec.h"

namespace membank::testing_support {

inline constexpr MemoryType kMemoryTypes[] = {MemoryType::kFfn, MemoryType::kLoraQk, MemoryType::kLoraVo, MemoryType::kLoraFfn, MemoryType::kKv};

inline BankSpec TypedSpec(MemoryType type, DType dtype = DType::kF32) {
  BankSpec spec;
  spec.bank_id = "typed";
  spec.type = type;
  spec.fan_out = 3;
  spec.widths = {5, 3};
  spec.SetAnchor({4, 24, 4, 2, 8, 36});
  spec.dtype = dtype;
  spec.seed = 42;
  spec.anchor_fingerprint = spec.tree_fingerprint = "none";
  return spec;
}

}  // namespace membank::testing_support
