#include "model_worker/serve/model_engine.h"

#include <algorithm>
#include <exception>

#include "common/base/log.h"
#include "common/base/metrics.h"
#include "common/base/status_macros.h"
#include "model_worker/model/weights.h"

namespace membank {
namespace {

double Milliseconds(absl::Time from, absl::Time to) { return from == absl::InfinitePast() ? 0 : absl::ToDoubleMilliseconds(to - from); }

uint64_t KvTokens(const std::vector<std::unique_ptr<Sequence>>& running) {
  uint64_t tokens = 0;
  for (const auto& sequence : running) tokens += sequence->reserved;
  return tokens;
}

}  // namespace

absl::StatusOr<std::unique_ptr<Engine>> LoadEngine(const std::string& anchor_path, DType dtype, const std::vector<ServedBank>& banks,
                                                   const Tokenizer* tokenizer, const EngineOptions& options) {
  ASSIGN_OR_RETURN(AnchorWeights weights, LoadAnchor(anchor_path, TorchDtype(dtype)));
  return ModelEngine::Create(std::make_unique<Transformer>(std::move(weights), /*train_anchor=*/false), banks, tokenizer, options);
}

absl::StatusOr<std::unique_ptr<Engine>> ModelEngine::Create(std::unique_ptr<Transformer> model, const std::vector<ServedBank>& banks,
                                                            const Tokenizer* tokenizer, const EngineOptions& options) {
  const AnchorWeights& weights = model->weights();
  if (tokenizer->vocab_size() > weights.config.vocab) {
    return FailedPrecondition("the tokenizer has {} tokens, the anchor's vocabulary {}; give the tokenizer that belongs to the anchor",
                              tokenizer->vocab_size(), weights.config.vocab);
  }
  if (options.context > weights.config.context) {
    return InvalidArgument("context is {}; the anchor was made for at most {}", options.context, weights.config.context);
  }
  std::unique_ptr<ModelEngine> engine(new ModelEngine(std::move(model), tokenizer, options));
  BlockLoaderOptions loader;
  loader.dtype = engine->model_->dtype();
  loader.capacity_bytes = options.block_cache_bytes;
  loader.resident_levels = options.resident_levels;
  loader.threads = static_cast<int>(options.fetch_threads);
  loader.timeout = options.fetch_timeout;
  ASSIGN_OR_RETURN(engine->banks_, BankStack::Create(banks, engine->model_->weights(), loader));
  for (const ServedBank& bank : banks) engine->facts_.banks.push_back(bank.client->spec());
  engine->step_options_.levels = engine->banks_->Levels();
  engine->thread_ = std::thread([raw = engine.get()] { raw->Run(); });
  return engine;
}

ModelEngine::ModelEngine(std::unique_ptr<Transformer> model, const Tokenizer* tokenizer, const EngineOptions& options)
    : options_(options), tokenizer_(tokenizer), model_(std::move(model)) {
  const ModelConfig& config = model_->config();
  facts_.anchor_fingerprint = model_->weights().fingerprint;
  facts_.context = options.context > 0 ? options.context : static_cast<uint32_t>(config.context);
  facts_.vocab = tokenizer->vocab_size();
  step_options_.prefill_tokens = options.prefill_tokens;
  step_options_.context = facts_.context;
  step_options_.eos_id = tokenizer->eos_id();
  step_options_.vocab = static_cast<size_t>(facts_.vocab);
}

ModelEngine::~ModelEngine() {
  {
    absl::MutexLock lock(&mu_);
    stopping_ = true;
  }
  if (thread_.joinable()) thread_.join();
}

// --- Submission ----------------------------------------------------------------------------------------------------------

absl::Status ModelEngine::CheckTokens(const std::vector<int32_t>& tokens) const {
  if (tokens.empty()) return InvalidArgument("the prompt has no tokens; at least one is needed");
  for (size_t i = 0; i < tokens.size(); ++i) {
    if (tokens[i] < 0 || tokens[i] >= facts_.vocab) {
      return InvalidArgument("token {} at position {} is not in the vocabulary; allowed: 0 to {}", tokens[i], i, facts_.vocab - 1);
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<uint64_t> ModelEngine::Generate(GenerateTask task, std::shared_ptr<GenerateSink> sink) {
  RETURN_IF_ERROR(CheckTokens(task.prompt));
  RETURN_IF_ERROR(task.sampling.Validate(facts_.vocab));
  const size_t needed = task.prompt.size() + (task.sampling.max_tokens > 0 ? 1 : 0);
  if (needed > facts_.context) {
    return InvalidArgument("the prompt has {} tokens, with at least one new token {}; the context holds {}: shorten the prompt",
                           task.prompt.size(), needed, facts_.context);
  }
  auto sequence = std::make_unique<Sequence>();
  ASSIGN_OR_RETURN(sequence->memory, banks_->UsesOf(task.memory));
  sequence->deadline = task.deadline;
  sequence->prompt = task.prompt.size();
  const uint64_t length = std::min<uint64_t>(facts_.context, sequence->prompt + uint64_t{task.sampling.max_tokens});
  sequence->reserved = task.sampling.max_tokens == 0 && length <= options_.prefill_tokens ? 0 : length;
  if (sequence->reserved > options_.kv_cache_tokens) {
    return InvalidArgument("prompt and max_tokens need {} tokens of KV cache, the worker has {}; ask for fewer tokens", sequence->reserved,
                           options_.kv_cache_tokens);
  }
  sequence->tokens = std::move(task.prompt);
  sequence->generation = std::make_unique<Generation>(task.sampling, *tokenizer_, std::move(sink));
  std::vector<SequencePtr> sequences;
  sequences.push_back(std::move(sequence));
  return Submit(std::move(sequences));
}

absl::StatusOr<uint64_t> ModelEngine::Score(std::vector<ScoreTask> tasks, absl::Time deadline, ScoreCallback done) {
  if (tasks.empty()) return InvalidArgument("nothing to score; at least one item is needed");
  auto group = std::make_shared<ScoreGroup>();
  group->outcomes.resize(tasks.size());
  group->remaining = tasks.size();
  std::vector<SequencePtr> sequences;
  for (size_t i = 0; i < tasks.size(); ++i) {
    ScoreTask& task = tasks[i];
    auto sequence = std::make_unique<Sequence>();
    auto check = [&]() -> absl::Status {
      RETURN_IF_ERROR(CheckTokens(task.tokens));
      if (task.context < 1 || task.context >= task.tokens.size()) {
        return InvalidArgument("{} of {} tokens are context; at least one must be, and at least one must be left to score", task.context,
                               task.tokens.size());
      }
      if (task.tokens.size() > facts_.context) {
        return InvalidArgument("context and continuation have {} tokens; the context holds {}: shorten them", task.tokens.size(),
                               facts_.context);
      }
      ASSIGN_OR_RETURN(sequence->memory, banks_->UsesOf(task.memory));
      sequence->reserved = task.tokens.size() <= options_.prefill_tokens ? 0 : task.tokens.size();
      if (sequence->reserved > options_.kv_cache_tokens) {
        return InvalidArgument("{} tokens need as much KV cache, the worker has {}; score shorter texts", sequence->reserved,
                               options_.kv_cache_tokens);
      }
      return absl::OkStatus();
    };
    if (absl::Status status = check(); !status.ok()) return tasks.size() == 1 ? status : Annotate(status, fmt::format("item {}", i));
    sequence->deadline = deadline;
    sequence->tokens = std::move(task.tokens);
    sequence->prompt = sequence->tokens.size();
    sequence->group = group;
    sequence->item = i;
    sequence->score_from = task.context;
    sequences.push_back(std::move(sequence));
  }
  group->done = std::move(done);
  return Submit(std::move(sequences));
}

absl::StatusOr<uint64_t> ModelEngine::Submit(std::vector<SequencePtr> sequences) {
  const absl::Time now = absl::Now();
  uint64_t tokens = 0;
  for (const SequencePtr& sequence : sequences) tokens += sequence->prompt;
  absl::MutexLock lock(&mu_);
  if (draining_) return Unavailable("the worker is draining and takes no new work; use another one");
  if (queued_tokens_ + tokens > options_.max_queued_tokens) {
    return ResourceExhausted("{} prompt tokens are waiting and the request has {}; at most {} may wait: try later or another worker",
                             queued_tokens_, tokens, options_.max_queued_tokens);
  }
  queued_tokens_ += tokens;
  sequences_ += static_cast<uint32_t>(sequences.size());
  const uint64_t ticket = next_id_;
  for (SequencePtr& sequence : sequences) {
    sequence->id = next_id_++;
    sequence->ticket = ticket;
    sequence->submitted = now;
    inbox_.push_back(std::move(sequence));
  }
  return ticket;
}

void ModelEngine::Cancel(uint64_t ticket) {
  absl::MutexLock lock(&mu_);
  if (sequences_ > 0) cancelled_.insert(ticket);
}

uint32_t ModelEngine::Drain(absl::Time deadline) {
  absl::MutexLock lock(&mu_);
  draining_ = true;
  auto idle = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) { return sequences_ == 0; };
  mu_.AwaitWithDeadline(absl::Condition(&idle), deadline);
  return sequences_;
}

EngineStatus ModelEngine::GetStatus() const {
  EngineStatus status;
  {
    absl::MutexLock lock(&mu_);
    status = status_;
    status.queued_tokens = queued_tokens_;
    status.queued = sequences_ - std::min(sequences_, status.running);
    status.draining = draining_;
  }
  for (size_t i = 0; i < banks_->size(); ++i) status.resident.push_back({banks_->loader(i).ResidentBlocks(), banks_->loader(i).resident_bytes()});
  return status;
}

// --- The engine's thread -------------------------------------------------------------------------------------------------

bool ModelEngine::HasMail() const { return stopping_ || !inbox_.empty() || !cancelled_.empty() || !loaded_.empty(); }

void ModelEngine::Run() {
  at::set_num_threads(options_.threads > 0 ? static_cast<int>(options_.threads) : static_cast<int>(std::thread::hardware_concurrency()));
  torch::InferenceMode inference;
  while (ReadMail()) {
    TakeOutEnded();
    StartLoads();
    Admit();
    if (!running_.empty()) Step();
    TakeOutEnded();
    PublishStatus();
  }
  for (SequencePtr& sequence : running_) waiting_.push_back(std::move(sequence));
  running_.clear();
  for (SequencePtr& sequence : waiting_) {
    sequence->End(FinishReason::kCancelled, Cancelled("the worker is stopping"));
    Finish(std::move(sequence));
  }
  waiting_.clear();
}

// Takes what other threads left: new sequences, cancellations, blocks. Waits when there is nothing to compute.
bool ModelEngine::ReadMail() {
  std::vector<SequencePtr> arrived;
  absl::flat_hash_set<uint64_t> cancelled;
  std::vector<Loaded> loaded;
  bool stopping = false;
  {
    absl::MutexLock lock(&mu_);
    if (NothingToDo()) mu_.AwaitWithDeadline(absl::Condition(this, &ModelEngine::HasMail), NextDeadline());
    arrived.swap(inbox_);
    cancelled.swap(cancelled_);
    loaded.swap(loaded_);
    stopping = stopping_;
  }
  for (SequencePtr& sequence : arrived) waiting_.push_back(std::move(sequence));
  for (Loaded& result : loaded) {
    const auto is_its = [&](const SequencePtr& sequence) { return sequence->id == result.id; };
    if (const auto it = std::find_if(waiting_.begin(), waiting_.end(), is_its); it != waiting_.end()) {
      TakeBlocks(**it, std::move(result));
    } else if (const auto runs = std::find_if(running_.begin(), running_.end(), is_its); runs != running_.end()) {
      TakeVerdict(**runs, result);
    }  // else cancelled meanwhile
  }
  const absl::Time now = absl::Now();
  auto end_if_due = [&](Sequence& sequence) {
    if (cancelled.contains(sequence.ticket)) sequence.End(FinishReason::kCancelled, Cancelled("the request was cancelled"));
    if (sequence.deadline <= now) {
      sequence.End(FinishReason::kCancelled, DeadlineExceeded("the deadline passed after {} of {} tokens of the prompt were read and {} new "
                                                              "ones made", std::min(sequence.done, sequence.prompt), sequence.prompt,
                                                              sequence.tokens.size() - sequence.prompt));
    }
  };
  for (SequencePtr& sequence : waiting_) end_if_due(*sequence);
  for (SequencePtr& sequence : running_) {
    end_if_due(*sequence);
    CheckMemory(*sequence, now);
  }
  return !stopping;
}

// The blocks of one bank for a sequence that waits for them. A stacked bank that refuses them is left out; other errors end the sequence.
void ModelEngine::TakeBlocks(Sequence& sequence, Loaded result) {
  BankUse& use = sequence.memory[result.use];
  use.asked_at = absl::InfiniteFuture();
  if (result.blocks.ok()) {
    use.blocks = *std::move(result.blocks);
    use.seen_epoch = use.asked_epoch;
  } else if (use.bank > 0 && absl::IsPermissionDenied(result.blocks.status())) {
    use.ids.clear();
    if (sequence.generation != nullptr) {
      sequence.generation->sink->OnLeftOut(use.bank);
    } else {
      sequence.group->outcomes[sequence.item].left_out.push_back(use.bank);
    }
  } else {
    sequence.End(FinishReason::kCancelled, result.blocks.status());
  }
  if (--sequence.loading == 0) sequence.state = Sequence::State::kReady;
}

// The answer for a running sequence that was asked whether the right to its blocks is still there.
void ModelEngine::TakeVerdict(Sequence& sequence, const Loaded& result) {
  BankUse& use = sequence.memory[result.use];
  use.asked_at = absl::InfiniteFuture();
  use.seen_epoch = use.asked_epoch;
  absl::Status status = result.blocks.status();
  if (absl::IsPermissionDenied(status)) {
    status = Aborted("the right to read was lost while the answer was made: {}; ask again", std::string(status.message()));
  }
  if (!status.ok()) sequence.End(FinishReason::kCancelled, status);
}

// What a sequence computes with may have been blocked since, or the right to read it may be gone.
void ModelEngine::CheckMemory(Sequence& sequence, absl::Time now) {
  for (size_t i = 0; i < sequence.memory.size() && !sequence.ended; ++i) {
    BankUse& use = sequence.memory[i];
    absl::Status status = banks_->Check(use);
    if (status.ok()) status = banks_->CheckAnswered(use, now);
    if (!status.ok()) {
      sequence.End(FinishReason::kCancelled, status);
    } else if (!use.blocks.empty() && use.asked_at == absl::InfiniteFuture() && !banks_->RightSeen(use)) {
      AskForBlocks(sequence, i);
    }
  }
}

void ModelEngine::AskForBlocks(Sequence& sequence, size_t use) {
  banks_->Load(&sequence.memory[use], [this, id = sequence.id, use](absl::StatusOr<std::vector<BlockHandle>> blocks) {
    absl::MutexLock lock(&mu_);
    loaded_.push_back({id, use, std::move(blocks)});
  });
}

// Nothing runs, and of the sequences that may be admitted next all wait for their blocks.
bool ModelEngine::NothingToDo() const {
  const size_t ahead = std::min<size_t>(waiting_.size(), options_.max_running);
  return running_.empty() && std::all_of(waiting_.begin(), waiting_.begin() + static_cast<ptrdiff_t>(ahead), [](const SequencePtr& sequence) {
           return sequence->state == Sequence::State::kLoading;
         });
}

absl::Time ModelEngine::NextDeadline() const {
  absl::Time next = absl::InfiniteFuture();
  for (const SequencePtr& sequence : waiting_) next = std::min(next, sequence->deadline);
  return next;
}

// The memory of ended sequences is free before their receivers hear of it, and before the next step.
void ModelEngine::TakeOutEnded() {
  std::vector<SequencePtr> ended;
  auto take = [&](auto& sequences) {
    for (SequencePtr& sequence : sequences) {
      if (sequence->ended) ended.push_back(std::move(sequence));
    }
    std::erase(sequences, nullptr);
  };
  take(waiting_);
  take(running_);
  kv_tokens_ = KvTokens(running_);
  for (SequencePtr& sequence : ended) Finish(std::move(sequence));
}

// Asks for the blocks of the next sequences. Only as many as can run look ahead, so that the blocks pinned are bounded.
void ModelEngine::StartLoads() {
  const size_t ahead = std::min<size_t>(waiting_.size(), options_.max_running);
  for (size_t i = 0; i < ahead; ++i) {
    Sequence& sequence = *waiting_[i];
    if (sequence.state != Sequence::State::kQueued) continue;
    for (size_t use = 0; use < sequence.memory.size(); ++use) {
      if (sequence.memory[use].ids.empty() || !sequence.memory[use].blocks.empty()) continue;
      ++sequence.loading;
      AskForBlocks(sequence, use);
    }
    sequence.state = sequence.loading == 0 ? Sequence::State::kReady : Sequence::State::kLoading;
  }
}

// While it waited for room, rights to what it had loaded may have gone: such blocks are asked for again before it runs.
bool ModelEngine::LoseStaleBlocks(Sequence& sequence) const {
  for (BankUse& use : sequence.memory) {
    if (use.blocks.empty() || banks_->RightSeen(use)) continue;
    use.blocks.clear();
    sequence.state = Sequence::State::kQueued;
  }
  return sequence.state == Sequence::State::kQueued;
}

void ModelEngine::Admit() {
  for (auto it = waiting_.begin(); it != waiting_.end() && running_.size() < options_.max_running;) {
    Sequence& sequence = **it;
    if (sequence.state != Sequence::State::kReady) {
      ++it;
      continue;
    }
    if (LoseStaleBlocks(sequence)) {
      ++it;
      continue;
    }
    if (kv_tokens_ + sequence.reserved > options_.kv_cache_tokens) return;
    kv_tokens_ += sequence.reserved;
    if (sequence.reserved > 0) sequence.cache = model_->NewCache(static_cast<int64_t>(sequence.reserved));
    sequence.state = Sequence::State::kRunning;
    {
      absl::MutexLock lock(&mu_);
      queued_tokens_ -= sequence.prompt;
    }
    running_.push_back(std::move(*it));
    it = waiting_.erase(it);
  }
}

void ModelEngine::Step() {
  static auto& latency = GetLatency("membank_worker_step_seconds", "Time of one step of the engine");
  static auto& generated = GetCounter("membank_worker_generated_tokens_total", "Tokens generated");
  static auto& read = GetCounter("membank_worker_prompt_tokens_total", "Prompt and scored tokens read");
  const absl::Time begin = absl::Now();
  std::vector<Sequence*> sequences;
  for (const SequencePtr& sequence : running_) sequences.push_back(sequence.get());
  StepCount count;
  try {
    count = RunStep(*model_, step_options_, sequences);
  } catch (const std::exception& error) {
    LOG_ERROR("a step over {} sequences failed: {}", sequences.size(), error.what());
    for (Sequence* sequence : sequences) {
      sequence->End(FinishReason::kCancelled, Internal("the model failed: {}", error.what()));
    }
  }
  latency.Observe(absl::ToDoubleSeconds(absl::Now() - begin));
  generated.Increment(static_cast<double>(count.generated));
  read.Increment(static_cast<double>(count.read));
  {
    absl::MutexLock lock(&mu_);
    status_.generated_tokens += static_cast<uint64_t>(count.generated);
    status_.prompt_tokens += static_cast<uint64_t>(count.read);
  }
  for (Sequence* sequence : sequences) {
    Generation* generation = sequence->generation.get();
    if (generation == nullptr) continue;
    GenerateOutput output = std::exchange(generation->output, {});
    if (sequence->ended && sequence->status.ok()) output.text += generation->text.Finish();
    if (!output.prompt.empty() || !output.tokens.empty() || !output.text.empty()) generation->sink->OnOutput(std::move(output));
  }
}

void ModelEngine::Finish(SequencePtr sequence) {
  static auto& first_token = GetLatency("membank_worker_first_token_seconds", "Time from arrival to the first new token");
  const bool was_waiting = sequence->state != Sequence::State::kRunning;
  sequence->cache = KvCache();
  sequence->memory.clear();
  {
    absl::MutexLock lock(&mu_);
    if (was_waiting) queued_tokens_ -= sequence->prompt;
    status_.kv_tokens = kv_tokens_;
    status_.running = static_cast<uint32_t>(running_.size());
  }
  if (sequence->generation != nullptr) {
    GenerateSummary summary;
    summary.reason = sequence->reason;
    summary.prompt_tokens = static_cast<uint32_t>(sequence->prompt);
    summary.completion_tokens = sequence->generation->completion_tokens;
    summary.queue_ms = sequence->started == absl::InfinitePast() ? 0 : Milliseconds(sequence->submitted, sequence->started);
    if (sequence->first_token != absl::InfinitePast()) {
      summary.first_token_ms = Milliseconds(sequence->submitted, sequence->first_token);
      first_token.Observe(summary.first_token_ms / 1000);
    }
    summary.total_ms = Milliseconds(sequence->submitted, absl::Now());
    sequence->generation->sink->OnEnd(sequence->status, summary);
  } else if (ScoreGroup& group = *sequence->group; group.done != nullptr) {
    --group.remaining;
    if (!sequence->status.ok()) {
      // One item decides; the others of the call have nobody to report to any more.
      std::exchange(group.done, nullptr)(sequence->status);
      Cancel(sequence->ticket);
    } else if (group.remaining == 0) {
      std::exchange(group.done, nullptr)(std::move(group.outcomes));
    }
  }
  absl::MutexLock lock(&mu_);
  --sequences_;
}

void ModelEngine::PublishStatus() {
  static auto& running = GetGauge("membank_worker_running_sequences", "Sequences being computed");
  static auto& kv = GetGauge("membank_worker_kv_tokens", "Tokens of KV cache reserved");
  static auto& queued = GetGauge("membank_worker_queued_tokens", "Prompt tokens waiting");
  absl::MutexLock lock(&mu_);
  status_.running = static_cast<uint32_t>(running_.size());
  status_.kv_tokens = kv_tokens_;
  running.Set(static_cast<double>(running_.size()));
  kv.Set(static_cast<double>(kv_tokens_));
  queued.Set(static_cast<double>(queued_tokens_));
}

}  // namespace membank
