// One sequence inside the engine: a prompt being continued, or an item of a score batch. Owned by the engine, used by its thread alone.
#pragma once

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "model_worker/model/transformer.h"
#include "model_worker/serve/bank_stack.h"
#include "model_worker/serve/engine.h"
#include "model_worker/serve/sampler.h"
#include "model_worker/serve/text_stream.h"

namespace membank {

// What a generated sequence has and a scored one has not.
struct Generation {
  Generation(const SamplingParameters& parameters, const Tokenizer& tokenizer, std::shared_ptr<GenerateSink> receiver)
      : sampling(parameters), sampler(parameters), text(tokenizer, parameters.stop), sink(std::move(receiver)) {}

  SamplingParameters sampling;
  Sampler sampler;
  TextStream text;
  std::shared_ptr<GenerateSink> sink;
  GenerateOutput output;               // of the current step
  uint32_t completion_tokens = 0;
};

// All items of one Score call.
struct ScoreGroup {
  std::vector<ScoreOutcome> outcomes;
  size_t remaining = 0;
  ScoreCallback done;                  // null once called
};

struct Sequence {
  enum class State : uint8_t { kQueued, kLoading, kReady, kRunning, kEnded };

  uint64_t id = 0;
  uint64_t ticket = 0;
  State state = State::kQueued;
  std::vector<int32_t> tokens;         // prompt and what was generated
  size_t prompt = 0;                   // tokens of the prompt; of a scored item: all
  size_t done = 0;                     // tokens that went through the model
  std::vector<BankUse> memory;         // of each bank that gives it blocks, in the banks' order
  size_t loading = 0;                  // banks whose blocks are on the way
  absl::Time submitted, deadline;
  absl::Time started = absl::InfinitePast(), first_token = absl::InfinitePast();

  uint64_t reserved = 0;               // KV tokens it may need; 0: read in one piece, nothing kept
  KvCache cache;

  std::unique_ptr<Generation> generation;  // exactly one of the two
  std::shared_ptr<ScoreGroup> group;
  size_t item = 0;                     // of the group
  size_t score_from = 0;               // first token that is scored

  // Set within a step; the engine takes the sequence out after it.
  bool ended = false;
  absl::Status status;
  FinishReason reason = FinishReason::kStop;

  void End(FinishReason why, absl::Status result = absl::OkStatus()) {
    if (ended) return;
    ended = true;
    reason = why;
    status = std::move(result);
  }
};

}  // namespace membank
