// The serving engine: one thread owns the model and advances all running sequences together, one step at a time (continuous batching).
// Plain structs only: no Torch, no protobuf, so that the RPC layer can include it. `model_engine.h` makes one.
// Threads: every method from any thread. Sinks and callbacks are called from the engine's thread (never inside Submit) and must not block.
// Errors: bad requests are INVALID_ARGUMENT, a full queue RESOURCE_EXHAUSTED, a draining engine UNAVAILABLE: all refused at submission, with
// nothing changed. Later ones (a block that cannot be fetched, the deadline) reach the sink and end that request alone.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "common/bank/bank_spec.h"
#include "common/text/tokenizer.h"

namespace membank {

class AccessWatch;
class MemoryClient;

struct SamplingParameters {
  uint32_t max_tokens = 16;            // 0 = only read the prompt
  float temperature = 0;               // 0 = greedy, up to 100
  float top_p = 1;                     // (0, 1]
  uint32_t top_k = 0;                  // 0 = all
  uint64_t seed = 0;
  std::vector<std::string> stop;       // at most 16, of 1 to 256 bytes
  std::vector<int32_t> stop_tokens;    // at most 64
  bool ignore_eos = false;
  std::optional<uint32_t> logprobs;    // with this many alternatives, 0 to 20
  bool echo = false;                   // report the prompt's tokens too

  absl::Status Validate(int32_t vocab) const;
};

struct MemoryChoice {
  BlockPath path;
  std::vector<uint32_t> levels;             // only these; empty = all
  std::optional<std::string> bank_version;  // of all blocks of the sequence, to its end; not set: the one in use when it is submitted
  std::vector<MemoryChoice> stacked;        // of the stacked banks, in the engine's order; of those that are not there nothing is used
};

struct GenerateTask {
  std::vector<int32_t> prompt;         // at least one token
  MemoryChoice memory;
  SamplingParameters sampling;
  absl::Time deadline = absl::InfiniteFuture();
};

struct TokenAlternative {
  int32_t id = 0;
  float logprob = 0;
};

struct TokenOutput {
  int32_t id = 0;
  std::optional<float> logprob;
  std::vector<TokenAlternative> top;   // best first
};

struct GenerateOutput {
  std::vector<TokenOutput> prompt;     // echo
  std::vector<TokenOutput> tokens;     // new
  std::string text;                    // became complete; valid UTF-8
};

enum class FinishReason : uint8_t { kStop = 0, kLength = 1, kCancelled = 2 };

struct GenerateSummary {
  FinishReason reason = FinishReason::kStop;
  uint32_t prompt_tokens = 0, completion_tokens = 0;
  double queue_ms = 0, first_token_ms = 0, total_ms = 0;   // since submission
};

// Receives one answer: any number of OnOutput, then OnEnd once (also after an error or a cancellation).
class GenerateSink {
 public:
  virtual ~GenerateSink() = default;
  // Before all output: the memory servers refuse this worker the blocks of a stacked bank (1 = the first of them); the answer is made without.
  virtual void OnLeftOut(size_t bank) = 0;
  virtual void OnOutput(GenerateOutput output) = 0;
  virtual void OnEnd(const absl::Status& status, const GenerateSummary& summary) = 0;
};

struct ScoreTask {
  std::vector<int32_t> tokens;         // context and continuation
  size_t context = 0;                  // how many of them are context: at least one, and at least one is left
  MemoryChoice memory;
};

struct ScoreOutcome {
  std::vector<float> logprobs;         // of the continuation's tokens
  double sum = 0;
  bool is_greedy = true;
  std::vector<size_t> left_out;        // stacked banks, as GenerateSink::OnLeftOut
};
using ScoreCallback = std::function<void(absl::StatusOr<std::vector<ScoreOutcome>>)>;

// A bank as an engine serves it; client and watch outlive the engine.
struct ServedBank {
  MemoryClient* client = nullptr;
  std::string version;                 // published version to begin with; empty = the live head
  const AccessWatch* access = nullptr; // what is blocked, and when rights change. Null: cached blocks are used for ever
};

struct EngineOptions {
  uint32_t context = 0;                // tokens of a sequence; 0 = what the anchor was made for
  uint32_t max_running = 32;           // sequences computed at once
  uint32_t prefill_tokens = 512;       // prompt tokens read in one step; smaller: steadier stream for others, slower prompts
  uint64_t max_queued_tokens = 262144; // waiting prompt tokens; beyond it RESOURCE_EXHAUSTED
  uint64_t kv_cache_tokens = 65536;    // reserved by all running sequences together
  uint32_t threads = 0;                // compute threads; 0 = one per core
  uint64_t block_cache_bytes = 2ull << 30;  // of each bank; blocks that no sequence uses are dropped beyond it
  uint32_t resident_levels = 0;        // of each bank: blocks of levels 1 to this one stay, beside block_cache_bytes
  uint32_t fetch_threads = 4;          // blocks of a bank fetched at once
  absl::Duration fetch_timeout = absl::Seconds(30);
};

// What a bank has in the worker's memory.
struct ResidentBank {
  std::vector<BlockId> blocks;
  uint64_t bytes = 0;
};

struct EngineStatus {
  uint32_t queued = 0, running = 0;
  uint64_t queued_tokens = 0, kv_tokens = 0;
  std::vector<ResidentBank> resident;  // one per bank
  uint64_t generated_tokens = 0, prompt_tokens = 0;   // since the start
  bool draining = false;
};

// Facts that never change while the engine lives.
struct EngineFacts {
  std::string anchor_fingerprint;
  std::vector<BankSpec> banks;         // the first, then those stacked on it; empty: no memory
  uint32_t context = 0;
  int32_t vocab = 0;                   // the tokenizer's; the anchor's may be padded to more
};

class Engine {
 public:
  virtual ~Engine() = default;         // ends what is running with CANCELLED

  // Tickets are for Cancel; an unknown or finished ticket is ignored. A cancelled sequence has freed its KV cache and its blocks before
  // the next step; its sink still gets OnEnd (FinishReason::kCancelled, status CANCELLED).
  virtual absl::StatusOr<uint64_t> Generate(GenerateTask task, std::shared_ptr<GenerateSink> sink) = 0;
  virtual absl::StatusOr<uint64_t> Score(std::vector<ScoreTask> tasks, absl::Time deadline, ScoreCallback done) = 0;
  virtual void Cancel(uint64_t ticket) = 0;

  // The blocks that `memory` (its `stacked` is not looked at) joins to the anchor from bank number `bank`, 0 = the first; checks the path.
  virtual absl::StatusOr<std::vector<BlockId>> BlocksOf(size_t bank, const MemoryChoice& memory) const = 0;

  // The version of each bank that new sequences get; empty = the live head.
  virtual std::vector<std::string> bank_versions() const = 0;
  // New sequences get this version of the bank (by name; empty: the first one) from now on, those in flight keep theirs; which one they got
  // before. Asks the memory servers, so it may take seconds. NOT_FOUND lists the banks, or the versions that every server has. `check_only`:
  // nothing is changed.
  virtual absl::StatusOr<std::string> UseBankVersion(const std::string& bank, const std::string& bank_version, bool check_only) = 0;

  // Refuses new work from now on; returns when idle or at the deadline: how many sequences are left.
  virtual uint32_t Drain(absl::Time deadline) = 0;

  virtual EngineStatus GetStatus() const = 0;
  virtual const EngineFacts& facts() const = 0;
  virtual const EngineOptions& options() const = 0;
};

// Loads the anchor and starts the engine's thread. `banks`: the first, then those stacked on it; none for a worker without memory. They and
// the tokenizer must outlive the engine. FAILED_PRECONDITION when bank and anchor, or tokenizer and anchor, do not belong together (both
// named), or two banks have one name.
absl::StatusOr<std::unique_ptr<Engine>> LoadEngine(const std::string& anchor_path, DType dtype, const std::vector<ServedBank>& banks,
                                                   const Tokenizer* tokenizer, const EngineOptions& options);

}  // namespace membank
