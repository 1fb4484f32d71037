// What a bank and a model say about each other. Pure functions.
#pragma once

#include "common/bank/bank_spec.h"
#include "model_worker/model/transformer.h"

namespace membank {

// What a bank depends on of a model's configuration.
inline AnchorShape AnchorShapeOf(const ModelConfig& c) {
  const auto narrow = [](int64_t size) { return static_cast<uint32_t>(size); };
  return {narrow(c.layers), narrow(c.hidden), narrow(c.heads), narrow(c.kv_heads), narrow(c.head_dim), narrow(c.ffn_inner), c.ffn.gated};
}

// A level of the bank, without groups; `bank`: MemoryLevel's.
inline MemoryLevel LevelOf(const BankSpec& spec, uint32_t level, size_t bank) {
  return {spec.width(level), {}, spec.type, spec.memory_layers, bank};
}

}  // namespace membank
