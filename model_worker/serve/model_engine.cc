#include "model_worker/serve/model_engine.h"

#include <algorithm>
#include <exception>

#include "common/base/log.h"
#include "common/base/metrics.h"
#include "common/base/status_macros.h"
#include "model_worker/model/weights.h"

namespace membank {
namespace {

constexpr std::chrono::seconds kVersionsTimeout{10};  // of the memory servers, to say which versions they have

std::string VersionName(const std::string& version) { return version.empty() ? "(live head)" : version; }

double Milliseconds(absl::Time from, absl::Time to) { return from == absl::InfinitePast() ? 0 : absl::ToDoubleMilliseconds(to - from); }

uint64_t KvTokens(const std::vector<std::unique_ptr<Sequence>>& running) {
  uint64_t tokens = 0;
  for (const auto& sequence : running) tokens += sequence->reserved;
  return tokens;
}

absl::Status CheckBank(const BankSpec& bank, const AnchorWeights& anchor) {
  const ModelConfig& config = anchor.config;
  if (bank.layers != config.layers || bank.hidden != config.hidden) {
    return FailedPrecondition("bank {} was made for {} layers of hidden size {}, the anchor has {} of {}; serve it with its own anchor",
                              bank.bank_id, bank.layers, bank.hidden, config.layers, config.hidden);
  }
  if (bank.anchor_fingerprint != anchor.origin) {
    return FailedPrecondition("bank {} was trained beside the anchor with fingerprint {}, this one's is {}; serve it with its own anchor",
                              bank.bank_id, bank.anchor_fingerprint, anchor.origin);
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::unique_ptr<Engine>> LoadEngine(const std::string& anchor_path, DType dtype, MemoryClient* client,
                                                   const Tokenizer* tokenizer, const EngineOptions& options) {
  ASSIGN_OR_RETURN(AnchorWeights weights, LoadAnchor(anchor_path, TorchDtype(dtype)));
  return ModelEngine::Create(std::make_unique<Transformer>(std::move(weights), /*train_anchor=*/false), client, tokenizer, options);
}

absl::StatusOr<std::unique_ptr<Engine>> ModelEngine::Create(std::unique_ptr<Transformer> model, MemoryClient* client,
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
  if (client != nullptr) {
    RETURN_IF_ERROR(CheckBank(client->spec(), engine->model_->weights()));
    engine->client_ = client;
    engine->facts_.bank = client->spec();
    engine->step_options_.widths = client->spec().widths;
    BlockLoaderOptions loader;
    loader.dtype = engine->model_->dtype();
    loader.capacity_bytes = options.block_cache_bytes;
    loader.threads = static_cast<int>(options.fetch_threads);
    loader.timeout = options.fetch_timeout;
    loader.access = options.access;
    engine->loader_ = std::make_unique<BlockLoader>(client, loader);
  }
  engine->thread_ = std::thread([raw = engine.get()] { raw->Run(); });
  return engine;
}

ModelEngine::ModelEngine(std::unique_ptr<Transformer> model, const Tokenizer* tokenizer, const EngineOptions& options)
    : options_(options), tokenizer_(tokenizer), model_(std::move(model)), bank_version_(options.bank_version) {
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

absl::StatusOr<std::vector<BlockId>> ModelEngine::BlocksOf(const MemoryChoice& memory) const {
  const BlockPath& path = memory.path;
  if (path.mode == MemoryMode::kNone) return std::vector<BlockId>();
  if (!facts_.bank.has_value()) {
    return FailedPrecondition("this worker serves its anchor without a bank; memory '{}' is not possible, only 'none'",
                              path.mode == MemoryMode::kGeneric ? "generic" : "fetched");
  }
  const BankSpec& bank = *facts_.bank;
  if (path.mode == MemoryMode::kFetched) {
    const uint32_t leaves = ClusterCount(bank.fan_out, bank.depth());
    if (path.depth != bank.depth() || path.leaf >= leaves) {
      return InvalidArgument("unknown path: leaf {} of depth {}; bank {} has depth {} and leaves 0 to {}", path.leaf, path.depth,
                             bank.bank_id, bank.depth(), leaves - 1);
    }
  }
  for (uint32_t level : memory.levels) {
    if (level < 1 || level > bank.depth()) {
      return InvalidArgument("unknown level {}; bank {} has levels 1 to {}", level, bank.bank_id, bank.depth());
    }
  }
  std::vector<BlockId> blocks = bank.BlocksOf(path);
  if (!memory.levels.empty()) {
    std::erase_if(blocks, [&](BlockId id) { return std::find(memory.levels.begin(), memory.levels.end(), id.level) == memory.levels.end(); });
  }
  return blocks;
}

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
  ASSIGN_OR_RETURN(sequence->block_ids, BlocksOf(task.memory));
  sequence->bank_version = task.memory.bank_version.value_or(bank_version());
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
      ASSIGN_OR_RETURN(sequence->block_ids, BlocksOf(task.memory));
      sequence->bank_version = task.memory.bank_version.value_or(bank_version());
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

std::string ModelEngine::bank_version() const {
  absl::MutexLock lock(&mu_);
  return bank_version_;
}

absl::StatusOr<std::string> ModelEngine::UseBankVersion(const std::string& bank_version, bool check_only) {
  if (client_ == nullptr) return FailedPrecondition("this worker serves its anchor without a bank; there is no version to use");
  if (!bank_version.empty()) {
    ASSIGN_OR_RETURN(const std::vector<std::string> versions, client_->ListVersions(kVersionsTimeout));
    if (std::find(versions.begin(), versions.end(), bank_version) == versions.end()) {
      return NotFound("bank version \"{}\" is not on every memory server; these are: {}", bank_version,
                      versions.empty() ? "none" : fmt::format("{}", fmt::join(versions, ", ")));
    }
  }
  absl::MutexLock lock(&mu_);
  if (check_only) return bank_version_;
  LOG_INFO("new sequences get bank version {} after {}", VersionName(bank_version), VersionName(bank_version_));
  return std::exchange(bank_version_, bank_version);
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
  if (loader_ != nullptr) {
    status.resident_blocks = loader_->ResidentBlocks();
    status.resident_bytes = loader_->resident_bytes();
  }
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
    auto it = std::find_if(waiting_.begin(), waiting_.end(), [&](const SequencePtr& sequence) { return sequence->id == result.id; });
    if (it == waiting_.end()) continue;  // cancelled meanwhile
    if (result.blocks.ok()) {
      (*it)->blocks = *std::move(result.blocks);
      (*it)->state = Sequence::State::kReady;
    } else {
      (*it)->End(FinishReason::kCancelled, result.blocks.status());
    }
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
    if (const absl::Status allowed = CheckBlocks(*sequence); !allowed.ok()) sequence->End(FinishReason::kCancelled, allowed);
  }
  return !stopping;
}

// What a sequence computed with may have been blocked since.
absl::Status ModelEngine::CheckBlocks(const Sequence& sequence) const {
  if (options_.access == nullptr || sequence.blocks.empty()) return absl::OkStatus();
  for (const BlockHandle& block : sequence.blocks) {
    if (!block->blocked && options_.access->IsBlocked(block->id)) {
      return Aborted("block {} was blocked while the answer was made with it; ask again", ToString(block->id));
    }
  }
  return options_.access->CheckLease();
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
    if (sequence.block_ids.empty()) {
      sequence.state = Sequence::State::kReady;
      continue;
    }
    sequence.state = Sequence::State::kLoading;
    loader_->Load(sequence.bank_version, sequence.block_ids, [this, id = sequence.id](absl::StatusOr<std::vector<BlockHandle>> blocks) {
      absl::MutexLock lock(&mu_);
      loaded_.push_back({id, std::move(blocks)});
    });
  }
}

void ModelEngine::Admit() {
  for (auto it = waiting_.begin(); it != waiting_.end() && running_.size() < options_.max_running;) {
    Sequence& sequence = **it;
    if (sequence.state != Sequence::State::kReady) {
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
  sequence->blocks.clear();
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
