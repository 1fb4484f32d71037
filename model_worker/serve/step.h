// One step of the engine: a ragged batch of the next token of every sequence that decodes and as much prompt as the budget allows, all
// through the model at once, whatever memory each uses; then every row's logits go to its sequence. Used by the engine's thread.
#pragma once

#include <vector>

#include "model_worker/serve/sequence.h"

namespace membank {

struct StepOptions {
  int64_t prefill_tokens = 512;
  int64_t context = 0;
  int32_t eos_id = -1;
  size_t vocab = 0;                // tokens that have a text; an anchor's padding beyond them is never chosen
  MemoryBatch levels;              // of all banks, without groups; empty without a bank
};

struct StepCount {
  int64_t generated = 0, read = 0;  // new tokens; prompt and scored tokens that went through the model
};

// Advances the sequences; those that are complete or failed have `ended` set. Throws what Torch throws.
StepCount RunStep(Transformer& model, const StepOptions& options, const std::vector<Sequence*>& running);

}  // namespace membank
