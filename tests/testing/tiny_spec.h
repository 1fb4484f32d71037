// The bank of the tests that need just any: small, two levels, fp32, a shape that has no two sizes alike.
#pragma once

#include "common/bank/bank_spec.h"

namespace membank::testing_support {

inline BankSpec TinySpec() {
  BankSpec spec;
  spec.bank_id = "tiny";
  spec.fan_out = 4;
  spec.widths = {8, 4};
  spec.layers = 2;
  spec.hidden = 32;
  spec.dtype = DType::kF32;
  spec.seed = 7;
  spec.anchor_fingerprint = "tiny";
  spec.tree_fingerprint = "tree";
  return spec;
}

}  // namespace membank::testing_support
