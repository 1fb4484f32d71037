// The engine over a Transformer: submission queue, admission, and the thread that owns the model. A sequence waits in order of arrival, has its
// blocks loaded ahead, is admitted when its blocks are there and its KV cache fits, runs, and is taken out between two steps. A sequence that
// waits for blocks lets later ones pass; one that waits for KV room does not, so that long prompts are not starved.
// See engine.h for threads and errors.
#pragma once

#include <deque>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "model_worker/serve/bank_stack.h"
#include "model_worker/serve/sequence.h"
#include "model_worker/serve/step.h"

namespace membank {

class ModelEngine final : public Engine {
 public:
  // As LoadEngine.
  static absl::StatusOr<std::unique_ptr<Engine>> Create(std::unique_ptr<Transformer> model, const std::vector<ServedBank>& banks,
                                                        const Tokenizer* tokenizer, const EngineOptions& options);
  ~ModelEngine() override;

  absl::StatusOr<uint64_t> Generate(GenerateTask task, std::shared_ptr<GenerateSink> sink) override;
  absl::StatusOr<uint64_t> Score(std::vector<ScoreTask> tasks, absl::Time deadline, ScoreCallback done) override;
  void Cancel(uint64_t ticket) override;
  absl::StatusOr<std::vector<BlockId>> BlocksOf(size_t bank, const MemoryChoice& memory) const override { return banks_->BlocksOf(bank, memory); }
  std::vector<std::string> bank_versions() const override { return banks_->Versions(); }
  absl::StatusOr<std::string> UseBankVersion(const std::string& bank, const std::string& bank_version, bool check_only) override {
    return banks_->UseVersion(bank, bank_version, check_only);
  }
  uint32_t Drain(absl::Time deadline) override;
  EngineStatus GetStatus() const override;
  const EngineFacts& facts() const override { return facts_; }
  const EngineOptions& options() const override { return options_; }

 private:
  struct Loaded {
    uint64_t id;   // of the sequence
    size_t use;    // of its memory
    absl::StatusOr<std::vector<BlockHandle>> blocks;
  };
  using SequencePtr = std::unique_ptr<Sequence>;

  ModelEngine(std::unique_ptr<Transformer> model, const Tokenizer* tokenizer, const EngineOptions& options);

  // Submission, any thread.
  absl::Status CheckTokens(const std::vector<int32_t>& tokens) const;
  absl::StatusOr<uint64_t> Submit(std::vector<SequencePtr> sequences) ABSL_LOCKS_EXCLUDED(mu_);
  bool HasMail() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  // The engine's thread.
  void Run();
  bool ReadMail();             // false: stop
  void TakeBlocks(Sequence& sequence, Loaded result);
  static void TakeVerdict(Sequence& sequence, const Loaded& result);
  void CheckMemory(Sequence& sequence, absl::Time now);
  void AskForBlocks(Sequence& sequence, size_t use);
  void TakeOutEnded();
  void StartLoads();
  bool LoseStaleBlocks(Sequence& sequence) const;
  void Admit();
  void Step();
  void Finish(SequencePtr sequence);
  void PublishStatus();
  bool NothingToDo() const;
  absl::Time NextDeadline() const;

  const EngineOptions options_;
  const Tokenizer* const tokenizer_;
  EngineFacts facts_;

  // The engine thread's own.
  std::unique_ptr<Transformer> model_;
  StepOptions step_options_;
  std::deque<SequencePtr> waiting_;
  std::vector<SequencePtr> running_;
  uint64_t kv_tokens_ = 0;

  mutable absl::Mutex mu_;
  std::vector<SequencePtr> inbox_ ABSL_GUARDED_BY(mu_);
  absl::flat_hash_set<uint64_t> cancelled_ ABSL_GUARDED_BY(mu_);  // tickets
  std::vector<Loaded> loaded_ ABSL_GUARDED_BY(mu_);
  uint64_t next_id_ ABSL_GUARDED_BY(mu_) = 1;
  uint64_t queued_tokens_ ABSL_GUARDED_BY(mu_) = 0;
  uint32_t sequences_ ABSL_GUARDED_BY(mu_) = 0;                   // accepted and not ended
  bool draining_ ABSL_GUARDED_BY(mu_) = false;
  bool stopping_ ABSL_GUARDED_BY(mu_) = false;
  EngineStatus status_ ABSL_GUARDED_BY(mu_);

  std::unique_ptr<BankStack> banks_;  // after mu_: its threads call back
  std::thread thread_;
};

}  // namespace membank
