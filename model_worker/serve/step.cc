#include "model_worker/serve/step.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "absl/container/flat_hash_map.h"
#include "common/base/status_macros.h"

namespace membank {
namespace {

constexpr int64_t kLogitRows = 128;  // rows of logits that exist at once

// A sequence's part of the batch: its tokens [from, to) are rows [row, row + to - from).
struct Part {
  Sequence* sequence;
  size_t from, to;
  int64_t row;
};

// A row whose logits are needed: they predict token `position` of the sequence.
struct Want {
  Sequence* sequence;
  size_t position;
  int64_t row;
};

std::vector<Part> ChooseParts(const StepOptions& options, const std::vector<Sequence*>& running) {
  std::vector<Part> parts;
  int64_t budget = options.prefill_tokens;
  int64_t row = 0;
  auto add = [&](Sequence* sequence, size_t count) {
    parts.push_back({sequence, sequence->done, sequence->done + count, row});
    row += static_cast<int64_t>(count);
  };
  for (Sequence* sequence : running) {
    if (sequence->done >= sequence->prompt) add(sequence, 1);
  }
  for (Sequence* sequence : running) {
    if (sequence->done >= sequence->prompt) continue;
    const int64_t left = static_cast<int64_t>(sequence->prompt - sequence->done);
    const bool whole = sequence->reserved == 0;  // cannot be continued: in one piece or later
    const int64_t count = whole && left > budget ? 0 : std::min(left, budget);
    if (count == 0) break;                       // in order of admission, so that nobody starves
    add(sequence, static_cast<size_t>(count));
    budget -= count;
  }
  return parts;
}

// The batch's memory: per level of each bank, each distinct block once with the rows that use it.
MemoryBatch GroupMemory(const MemoryBatch& levels, const std::vector<Part>& parts) {
  MemoryBatch memory = levels;
  absl::flat_hash_map<const ResidentBlock*, size_t> group_of;
  for (const Part& part : parts) {
    const std::pair<int64_t, int64_t> rows = {part.row, part.row + static_cast<int64_t>(part.to - part.from)};
    for (const BankUse& use : part.sequence->memory) {
      for (const BlockHandle& block : use.blocks) {
        std::vector<MemoryGroup>& groups = memory[use.first_level + block->id.level - 1].groups;
        auto [it, added] = group_of.try_emplace(block.get(), groups.size());
        if (added) groups.push_back({block->values, torch::Tensor(), {}});
        auto& ranges = groups[it->second].rows;
        if (!ranges.empty() && ranges.back().second == rows.first) {
          ranges.back().second = rows.second;
        } else {
          ranges.push_back(rows);
        }
      }
    }
  }
  std::erase_if(memory, [](const MemoryLevel& level) { return level.groups.empty(); });
  return memory;
}

RaggedBatch MakeBatch(const StepOptions& options, const std::vector<Part>& parts) {
  RaggedBatch batch;
  const Part& last = parts.back();
  const int64_t rows = last.row + static_cast<int64_t>(last.to - last.from);
  batch.tokens = torch::empty({rows}, torch::kLong);
  int64_t* tokens = batch.tokens.data_ptr<int64_t>();
  for (const Part& part : parts) {
    std::copy(part.sequence->tokens.begin() + part.from, part.sequence->tokens.begin() + part.to, tokens + part.row);
    KvCache* cache = part.sequence->reserved > 0 ? &part.sequence->cache : nullptr;
    batch.segments.push_back({part.row, part.row + static_cast<int64_t>(part.to - part.from), cache});
  }
  batch.memory = GroupMemory(options.levels, parts);
  return batch;
}

std::vector<Want> ChooseRows(const std::vector<Part>& parts) {
  std::vector<Want> wants;
  for (const Part& part : parts) {
    const Sequence& sequence = *part.sequence;
    const Generation* generation = sequence.generation.get();
    const bool echo = generation != nullptr && generation->sampling.echo && generation->sampling.logprobs.has_value();
    for (size_t at = part.from; at < part.to; ++at) {
      const size_t position = at + 1;
      const bool scored = generation == nullptr && position >= sequence.score_from && position < sequence.prompt;
      const bool echoed = echo && position < sequence.prompt;
      const bool sampled = generation != nullptr && position == sequence.tokens.size() && generation->sampling.max_tokens > 0;
      if (scored || echoed || sampled) wants.push_back({part.sequence, position, part.row + static_cast<int64_t>(at - part.from)});
    }
  }
  return wants;
}

TokenOutput Describe(const SamplingParameters& sampling, absl::Span<const float> logits, float log_sum, int32_t id) {
  TokenOutput token;
  token.id = id;
  if (sampling.logprobs.has_value()) {
    token.logprob = logits[id] - log_sum;
    token.top = TopLogprobs(logits, log_sum, *sampling.logprobs);
  }
  return token;
}

// Chooses the next token and decides whether it is the last.
void Sample(const StepOptions& options, Sequence& sequence, absl::Span<const float> logits, float log_sum, StepCount& count) {
  Generation& generation = *sequence.generation;
  const SamplingParameters& sampling = generation.sampling;
  const int32_t id = generation.sampler.Sample(logits);
  if (sequence.first_token == absl::InfinitePast()) sequence.first_token = absl::Now();
  const auto& stops = sampling.stop_tokens;
  if ((id == options.eos_id && !sampling.ignore_eos) || std::find(stops.begin(), stops.end(), id) != stops.end()) {
    return sequence.End(FinishReason::kStop);
  }
  sequence.tokens.push_back(id);
  ++generation.completion_tokens;
  ++count.generated;
  generation.output.tokens.push_back(Describe(sampling, logits, log_sum, id));
  absl::StatusOr<std::string> text = generation.text.Push(id);
  if (!text.ok()) return sequence.End(FinishReason::kStop, text.status());
  generation.output.text += *text;
  if (generation.text.stopped()) return sequence.End(FinishReason::kStop);
  const bool full = static_cast<int64_t>(sequence.tokens.size()) >= options.context;
  if (full || generation.completion_tokens >= sampling.max_tokens) sequence.End(FinishReason::kLength);
}

void UseRow(const StepOptions& options, const Want& want, absl::Span<const float> logits, float log_sum, StepCount& count) {
  Sequence& sequence = *want.sequence;
  if (sequence.ended) return;
  const float best = MaxLogit(logits);
  if (!std::isfinite(best)) {
    return sequence.End(FinishReason::kStop, Internal("the model's logits for token {} are not finite; the anchor's or the blocks' "
                                                      "weights are damaged or overflow in this dtype", want.position));
  }
  if (sequence.generation == nullptr) {
    ScoreOutcome& outcome = sequence.group->outcomes[sequence.item];
    const int32_t id = sequence.tokens[want.position];
    outcome.logprobs.push_back(logits[id] - log_sum);
    outcome.sum += outcome.logprobs.back();
    outcome.is_greedy = outcome.is_greedy && logits[id] == best;
  } else if (want.position < sequence.prompt) {
    sequence.generation->output.prompt.push_back(
        Describe(sequence.generation->sampling, logits, log_sum, sequence.tokens[want.position]));
  } else {
    Sample(options, sequence, logits, log_sum, count);
  }
}

bool NeedsLogSum(const Want& want) {
  return want.sequence->generation == nullptr || want.sequence->generation->sampling.logprobs.has_value();
}

// Echoed tokens that need no logits: the first one, and all when no log-probabilities are wanted.
void EchoWithoutLogits(const Part& part) {
  Generation* generation = part.sequence->generation.get();
  if (generation == nullptr || !generation->sampling.echo || part.from >= part.sequence->prompt) return;
  const size_t end = generation->sampling.logprobs.has_value() ? std::min<size_t>(part.to, 1) : part.to;
  for (size_t at = part.from; at < end; ++at) generation->output.prompt.push_back({part.sequence->tokens[at], std::nullopt, {}});
}

void UseLogits(Transformer& model, const StepOptions& options, const torch::Tensor& hidden, const std::vector<Want>& wants,
               StepCount& count) {
  for (size_t begin = 0; begin < wants.size(); begin += kLogitRows) {
    const size_t end = std::min(wants.size(), begin + kLogitRows);
    torch::Tensor rows = torch::empty({static_cast<int64_t>(end - begin)}, torch::kLong);
    for (size_t i = begin; i < end; ++i) rows.data_ptr<int64_t>()[i - begin] = wants[i].row;
    const torch::Tensor logits = model.Logits(hidden.index_select(0, rows.to(hidden.device()))).to(torch::kCPU).contiguous();
    torch::Tensor log_sums;
    if (std::any_of(wants.begin() + begin, wants.begin() + end, NeedsLogSum)) log_sums = logits.logsumexp(1);
    const size_t width = static_cast<size_t>(logits.size(1));
    for (size_t i = begin; i < end; ++i) {
      const absl::Span<const float> row(logits.data_ptr<float>() + (i - begin) * width, options.vocab);
      UseRow(options, wants[i], row, log_sums.defined() ? log_sums.data_ptr<float>()[i - begin] : 0.0f, count);
    }
  }
}

}  // namespace

StepCount RunStep(Transformer& model, const StepOptions& options, const std::vector<Sequence*>& running) {
  StepCount count;
  const std::vector<Part> parts = ChooseParts(options, running);
  const std::vector<Want> wants = ChooseRows(parts);
  const absl::Time now = absl::Now();
  for (const Part& part : parts) {
    if (part.sequence->started == absl::InfinitePast()) part.sequence->started = now;
  }
  const torch::Tensor hidden = model.Forward(MakeBatch(options, parts));
  for (const Part& part : parts) {
    if (part.from < part.sequence->prompt) count.read += static_cast<int64_t>(part.to - part.from);
    part.sequence->done = part.to;
    EchoWithoutLogits(part);
  }
  UseLogits(model, options, hidden, wants, count);
  for (const Part& part : parts) {
    Sequence& sequence = *part.sequence;
    const bool reads_only = sequence.generation == nullptr || sequence.generation->sampling.max_tokens == 0;
    if (reads_only && sequence.done == sequence.prompt) sequence.End(FinishReason::kLength);
  }
  return count;
}

}  // namespace membank
