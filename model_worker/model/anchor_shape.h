// What a bank depends on of a model's configuration. Pure function.
#pragma once

#include "common/bank/bank_spec.h"
#include "model_worker/model/transformer.h"

namespace membank {

inline AnchorShape AnchorShapeOf(const ModelConfig& c) {
  const auto narrow = [](int64_t size) { return static_cast<uint32_t>(size); };
  return {narrow(c.layers), narrow(c.hidden), narrow(c.heads), narrow(c.kv_heads), narrow(c.head_dim), narrow(c.ffn_inner)};
}

}  // namespace membank
