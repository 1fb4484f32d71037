// What the serving tests share: a tokenizer of bytes, a tiny random anchor, a bank in memory that can wait and fail, and a sink that
// gathers an answer.
#pragma once

#include <functional>
#include <memory>
#include <numeric>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "absl/synchronization/mutex.h"
#include "absl/synchronization/notification.h"
#include "common/base/status_macros.h"
#include "common/client/memory_client.h"
#include "gtest/gtest.h"
#include "model_worker/model/transformer.h"
#include "model_worker/serve/model_engine.h"
#include "tests/testing/tiny_spec.h"

namespace membank::serve_test {

inline constexpr int32_t kEos = 256;

// Ids 0 to 255 are bytes, 256 is the end of text, 257 another special token.
class ByteTokenizer final : public Tokenizer {
 public:
  absl::StatusOr<std::vector<int32_t>> Encode(std::string_view text, bool parse_special) const override {
    if (const size_t at = FindInvalidUtf8(text); at != std::string_view::npos) return InvalidArgument("not UTF-8 at byte {}", at);
    std::vector<int32_t> ids;
    for (unsigned char byte : text) ids.push_back(byte);
    return ids;
  }
  absl::StatusOr<std::string> Decode(absl::Span<const int32_t> ids, bool skip_special) const override {
    std::string text;
    for (int32_t id : ids) {
      if (id < 0 || id >= vocab_size()) return InvalidArgument("token {} is out of range", id);
      if (id < 256) text.push_back(static_cast<char>(id));
      if (id >= 256 && !skip_special) text += id == kEos ? "<eos>" : "<end>";
    }
    return text;
  }
  int32_t vocab_size() const override { return 258; }
  int32_t eos_id() const override { return kEos; }
  int32_t bos_id() const override { return -1; }
  bool IsSpecial(int32_t id) const override { return id >= 256; }
  absl::StatusOr<int32_t> TokenId(std::string_view token) const override { return NotFound("no token {}", token); }
  std::string Fingerprint() const override { return "bytes"; }
};

inline AnchorWeights TinyAnchor() {
  torch::manual_seed(1);
  const int64_t d = 32, df = 48, vocab = 264;
  AnchorWeights weights;
  weights.config = {.architecture = "llama", .layers = 2, .hidden = d, .heads = 4, .kv_heads = 2, .head_dim = 8, .ffn_inner = df,
                    .vocab = vocab, .context = 512, .rotary_dim = 8};
  auto random = [](std::vector<int64_t> shape) { return torch::randn(shape) * 0.3; };
  weights.embedding = random({vocab, d});
  for (int64_t layer = 0; layer < weights.config.layers; ++layer) {
    weights.layers.push_back({.input_norm = torch::ones({d}), .q = random({32, d}), .k = random({16, d}), .v = random({16, d}), .o = random({d, 32}),
                              .ffn_norm = torch::ones({d}), .gate = random({df, d}), .up = random({df, d}), .down = random({d, df})});
  }
  weights.final_norm = torch::ones({d});
  weights.head = weights.embedding;
  weights.fingerprint = weights.origin = "tiny";
  return weights;
}

using testing_support::TinySpec;

// Of a second bank of the same anchor, with another tree.
inline BankSpec PrivateSpec() {
  BankSpec spec = TinySpec();
  spec.bank_id = "private";
  spec.fan_out = 2;
  spec.widths = {4, 0, 16};
  spec.seed = 9;
  spec.tree_fingerprint = "another tree";
  return spec;
}

// Blocks are a function of the bank's seed and their id. Blocks can be held back, or fail.
class FakeMemory final : public MemoryClient {
 public:
  explicit FakeMemory(BankSpec spec = TinySpec()) : spec_(std::move(spec)) {}

  void Hold(BlockId id) { absl::MutexLock lock(&mu_); held_.insert(id); }
  void Release() { absl::MutexLock lock(&mu_); held_.clear(); }
  void Fail(BlockId id, absl::Status status) {  // OK: no longer
    absl::MutexLock lock(&mu_);
    if (status.ok()) failing_.erase(id);
    else failing_[id] = std::move(status);
  }
  void FailAfter(BlockId id, int fetches, absl::Status status) {  // the next `fetches` succeed
    absl::MutexLock lock(&mu_);
    fails_from_[id] = {fetches_[id] + fetches, std::move(status)};
  }
  int waiting() { absl::MutexLock lock(&mu_); return waiting_; }  // fetches that are held back
  void Block(BlockId id) { absl::MutexLock lock(&mu_); blocked_.insert(id); }   // served as blocked
  void Zero(BlockId id) { absl::MutexLock lock(&mu_); zero_.insert(id); }       // served, and all its values are zero
  void ServeAsInt8() { absl::MutexLock lock(&mu_); as_int8_ = true; }
  void SetVersion(uint64_t version) { absl::MutexLock lock(&mu_); version_ = version; }
  int fetches(BlockId id) { absl::MutexLock lock(&mu_); return fetches_[id]; }
  int unchanged() { absl::MutexLock lock(&mu_); return unchanged_; }
  std::string last_bank_version() { absl::MutexLock lock(&mu_); return last_bank_version_; }

  static std::vector<float> Values(const BankSpec& spec, BlockId id, uint64_t version) {
    std::vector<float> values(spec.BlockElements(id.level));
    uint32_t state = id.level * 7919u + id.cluster * 104729u + static_cast<uint32_t>(version) * 31u + static_cast<uint32_t>(spec.seed) * 15485863u + 1;
    for (float& value : values) {
      state = state * 1664525u + 1013904223u;
      value = (static_cast<float>(state >> 8) / static_cast<float>(1 << 24) - 0.5f) * 0.8f;
    }
    return values;
  }

  const BankSpec& spec() const override { return spec_; }
  absl::StatusOr<BankStatus> GetStatus() override { return BankStatus{.spec = spec_}; }
  absl::StatusOr<std::vector<std::string>> ListVersions(std::chrono::milliseconds) override { return std::vector<std::string>{"v1", "v2"}; }

  absl::Status Fetch(absl::Span<BlockFetch> blocks, const FetchOptions& options) override {
    for (BlockFetch& block : blocks) {
      absl::MutexLock lock(&mu_);
      last_bank_version_ = options.bank_version;
      auto free = [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) { return !held_.contains(block.id); };
      ++waiting_;
      const bool let_go = mu_.AwaitWithTimeout(absl::Condition(&free), absl::FromChrono(options.timeout));
      --waiting_;
      if (!let_go) return DeadlineExceeded("held");
      ++fetches_[block.id];
      if (auto it = fails_from_.find(block.id); it != fails_from_.end() && fetches_[block.id] > it->second.first) return it->second.second;
      if (auto it = failing_.find(block.id); it != failing_.end()) return it->second;
      const uint64_t version = options.bank_version == "v2" ? 2 : version_;
      block.version = version;
      block.blocked = blocked_.contains(block.id);
      if (block.blocked || zero_.contains(block.id)) {
        std::memset(block.destination.data(), 0, block.destination.size());
        continue;
      }
      block.unchanged = block.newer_than >= static_cast<int64_t>(version);
      if (block.unchanged) {
        ++unchanged_;
        continue;
      }
      const std::vector<float> values = Values(spec_, block.id, version);
      if (block.destination.size() != values.size() * 4) return Internal("destination has {} bytes", block.destination.size());
      std::memcpy(block.destination.data(), values.data(), block.destination.size());
      if (!as_int8_) continue;
      if (!options.int8) return FailedPrecondition("block {} comes as int8", ToString(block.id));
      block.payload = PayloadType::kI8Rows;
      const absl::Span<const uint8_t> bytes(reinterpret_cast<const uint8_t*>(values.data()), values.size() * 4);
      RETURN_IF_ERROR(QuantisePayload(spec_, block.id.level, bytes, block.destination.subspan(0, PayloadBytes(spec_, block.id.level, block.payload))));
    }
    return absl::OkStatus();
  }

  absl::Status Prefetch(absl::Span<const BlockId>) override { return Unimplemented("serving does not train"); }
  absl::Status BeginRun(const RunSettings&) override { return Unimplemented("serving does not train"); }
  absl::Status Push(const StepId&, uint32_t, absl::Span<const BlockGradient>, absl::Span<const double>) override {
    return Unimplemented("serving does not train");
  }
  absl::StatusOr<std::vector<double>> AwaitStep(const StepId&, std::chrono::milliseconds) override { return Unimplemented("serving does not train"); }
  absl::StatusOr<JoinedRun> JoinRun(const RunMember&, std::chrono::milliseconds) override { return Unimplemented("serving does not train"); }
  absl::StatusOr<double> PrepareStep(const StepId&, std::chrono::milliseconds) override { return Unimplemented("serving does not train"); }
  absl::Status ApplyStep(const StepId&, const ApplyParameters&) override { return Unimplemented("serving does not train"); }
  absl::Status SnapshotCheckpoint(const std::string&, uint64_t) override { return Unimplemented("serving does not train"); }
  absl::Status PrepareCheckpoint(const std::string&, uint64_t) override { return Unimplemented("serving does not train"); }
  absl::Status CommitCheckpoint(const std::string&, uint32_t) override { return Unimplemented("serving does not train"); }
  absl::Status AbortCheckpoint(const std::string&) override { return Unimplemented("serving does not train"); }
  absl::Status DeleteCheckpoint(const std::string&) override { return Unimplemented("serving does not train"); }
  absl::Status RestoreCheckpoint(const std::string&) override { return Unimplemented("serving does not train"); }
  absl::Status Rewind(uint64_t) override { return Unimplemented("serving does not train"); }
  absl::StatusOr<std::vector<CheckpointInfo>> ListCheckpoints() override { return std::vector<CheckpointInfo>(); }
  absl::Status Publish(const std::string&, const std::string&, PayloadType) override { return Unimplemented("serving does not train"); }
  ClientTraffic traffic() const override { return {}; }

 private:
  const BankSpec spec_;
  absl::Mutex mu_;
  absl::flat_hash_set<BlockId> held_ ABSL_GUARDED_BY(mu_), blocked_ ABSL_GUARDED_BY(mu_), zero_ ABSL_GUARDED_BY(mu_);
  absl::flat_hash_map<BlockId, absl::Status> failing_ ABSL_GUARDED_BY(mu_);
  absl::flat_hash_map<BlockId, int> fetches_ ABSL_GUARDED_BY(mu_);
  absl::flat_hash_map<BlockId, std::pair<int, absl::Status>> fails_from_ ABSL_GUARDED_BY(mu_);
  uint64_t version_ ABSL_GUARDED_BY(mu_) = 1;
  int waiting_ ABSL_GUARDED_BY(mu_) = 0;
  int unchanged_ ABSL_GUARDED_BY(mu_) = 0;
  bool as_int8_ ABSL_GUARDED_BY(mu_) = false;
  std::string last_bank_version_ ABSL_GUARDED_BY(mu_);
};

class Collector final : public GenerateSink {
 public:
  // `then` runs on the engine's thread after each output is kept.
  explicit Collector(std::function<void(const Collector*)> then = nullptr) : then_(std::move(then)) {}

  void OnLeftOut(size_t bank) override {
    absl::MutexLock lock(&mu_);
    EXPECT_TRUE(tokens_.empty() && prompt_.empty()) << "after the first output";
    left_out_.push_back(bank);
  }
  void OnOutput(GenerateOutput output) override {
    Keep(std::move(output));
    if (then_ != nullptr) then_(this);
  }
  void OnEnd(const absl::Status& status, const GenerateSummary& summary) override {
    status_ = status;
    summary_ = summary;
    ended_.Notify();
  }

  // All below: after the end.
  absl::Status Wait() {
    if (!ended_.WaitForNotificationWithTimeout(absl::Seconds(60))) return Internal("no end within 60 s");
    return status_;
  }
  bool ended() const { return ended_.HasBeenNotified(); }
  bool WaitForTokens(size_t count) {
    absl::MutexLock lock(&mu_);
    auto enough = [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) { return tokens_.size() >= count; };
    return mu_.AwaitWithTimeout(absl::Condition(&enough), absl::Seconds(60));
  }
  std::vector<int32_t> ids() { return Ids(tokens_); }
  const std::vector<TokenOutput>& tokens() { absl::MutexLock lock(&mu_); return tokens_; }
  const std::vector<TokenOutput>& prompt() { absl::MutexLock lock(&mu_); return prompt_; }
  std::vector<size_t> left_out() { absl::MutexLock lock(&mu_); return left_out_; }
  const std::string& text() { absl::MutexLock lock(&mu_); return text_; }
  const GenerateSummary& summary() const { return summary_; }

 private:
  void Keep(GenerateOutput output) {
    absl::MutexLock lock(&mu_);
    EXPECT_EQ(FindInvalidUtf8(output.text), std::string_view::npos);
    text_ += output.text;
    for (TokenOutput& token : output.prompt) prompt_.push_back(std::move(token));
    for (TokenOutput& token : output.tokens) tokens_.push_back(std::move(token));
  }
  std::vector<int32_t> Ids(const std::vector<TokenOutput>& tokens) {
    absl::MutexLock lock(&mu_);
    std::vector<int32_t> ids;
    for (const TokenOutput& token : tokens) ids.push_back(token.id);
    return ids;
  }

  const std::function<void(const Collector*)> then_;
  absl::Mutex mu_;
  std::string text_;
  std::vector<TokenOutput> prompt_, tokens_;
  std::vector<size_t> left_out_;
  absl::Status status_;
  GenerateSummary summary_;
  absl::Notification ended_;
};

inline std::vector<int32_t> Bytes(const std::string& text) { return ByteTokenizer().Encode(text, false).value(); }

inline MemoryChoice None() { return {}; }
inline MemoryChoice Generic() { return {{MemoryMode::kGeneric, 2, 0}, {}}; }
inline MemoryChoice Leaf(uint32_t leaf) { return {{MemoryMode::kFetched, 2, leaf}, {}}; }

class ServeTest : public ::testing::Test {
 protected:
  void TearDown() override { memory_.Release(); }  // whatever failed, no fetch is left waiting

  static EngineOptions Options() {
    EngineOptions options;
    options.threads = 1;  // tiny matrices: more threads only wait for each other
    return options;
  }

  void Start(const EngineOptions& options = Options(), bool with_memory = true) {
    engine_.reset();
    auto model = std::make_unique<Transformer>(TinyAnchor(), false);
    auto engine = ModelEngine::Create(std::move(model), with_memory ? banks_ : std::vector<ServedBank>(), &tokenizer_, options);
    ASSERT_TRUE(engine.ok()) << engine.status();
    engine_ = *std::move(engine);
  }

  static GenerateTask Task(const std::string& prompt, MemoryChoice memory, uint32_t max_tokens = 12) {
    GenerateTask task;
    task.prompt = Bytes(prompt);
    task.memory = std::move(memory);
    task.sampling.max_tokens = max_tokens;
    task.sampling.ignore_eos = true;
    task.sampling.logprobs = 2;
    return task;
  }

  std::shared_ptr<Collector> Submit(GenerateTask task, std::function<void(const Collector*)> then = nullptr) {
    auto sink = std::make_shared<Collector>(std::move(then));
    auto ticket = engine_->Generate(std::move(task), sink);
    EXPECT_TRUE(ticket.ok()) << ticket.status();
    ticket_ = ticket.value_or(0);
    return sink;
  }

  static void ExpectBitEqual(Collector& a, Collector& b) {
    ASSERT_EQ(a.ids(), b.ids());
    for (size_t i = 0; i < a.tokens().size(); ++i) EXPECT_EQ(*a.tokens()[i].logprob, *b.tokens()[i].logprob) << i;
  }

  absl::Status Refusal(GenerateTask task) { return engine_->Generate(std::move(task), std::make_shared<Collector>()).status(); }

  absl::StatusOr<std::vector<ScoreOutcome>> Score(std::vector<ScoreTask> tasks, absl::Time deadline = absl::InfiniteFuture()) {
    absl::Notification done;
    absl::StatusOr<std::vector<ScoreOutcome>> result = Internal("not called");
    auto ticket = engine_->Score(std::move(tasks), deadline, [&](absl::StatusOr<std::vector<ScoreOutcome>> outcomes) {
      result = std::move(outcomes);
      done.Notify();
    });
    if (!ticket.ok()) return ticket.status();
    done.WaitForNotification();
    return result;
  }

  ByteTokenizer tokenizer_;
  FakeMemory memory_;
  std::vector<ServedBank> banks_ = {{&memory_, "v1", nullptr}};
  std::unique_ptr<Engine> engine_;
  uint64_t ticket_ = 0;   // of the last Submit
};

}  // namespace membank::serve_test
