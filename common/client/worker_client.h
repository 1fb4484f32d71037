// The client of a model worker. Plain structs, no gRPC or protobuf here. Calls block until done or timed out; any thread. Errors name the
// worker's address; nothing is retried: a second generation may differ, and choosing another worker is the caller's business.
#pragma once

#include <chrono>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "common/bank/block.h"
#include "common/rpc/tls_files.h"

namespace membank {

class WorkerClient {
 public:
  struct Options {
    std::string address;                                                   // host:port or unix:/path
    TlsFiles tls;                                                          // nothing named: no TLS
    std::chrono::milliseconds timeout{120000};                             // of every call
  };

  // Text, or its tokens when there are any.
  struct Prompt {
    std::string text;
    std::vector<int32_t> tokens;
    bool parse_special = false;
  };
  // As in proto/membank/v1/worker.proto.
  struct Sampling {
    uint32_t max_tokens = 16;
    float temperature = 0, top_p = 1;
    uint32_t top_k = 0;
    uint64_t seed = 0;
    std::vector<std::string> stop;
    std::vector<int32_t> stop_tokens;
    bool ignore_eos = false, echo = false;
    std::optional<uint32_t> logprobs;
  };
  struct Memory {
    BlockPath path;
    std::vector<uint32_t> levels;                                          // empty: all
  };
  struct Token {
    int32_t id = 0;
    std::string bytes;
    std::optional<float> logprob;
  };
  struct Part {
    std::string text;
    std::vector<Token> prompt, tokens;
  };
  struct Answer {
    std::string finish_reason;                                             // "stop", "length" or "cancelled"
    std::string path, bank_id, bank_version;
    std::vector<BlockId> blocks;
    uint32_t prompt_tokens = 0, completion_tokens = 0;
    double first_token_ms = 0, total_ms = 0;
  };
  struct ScoreItem {
    Prompt context, continuation;
    Memory memory;
  };
  struct Score {
    std::vector<int32_t> tokens;
    std::vector<float> logprobs;
    double sum = 0;
    bool is_greedy = false;
    uint32_t context_tokens = 0;
  };
  struct Status {
    std::string model, anchor_fingerprint, bank_id, bank_version;          // of the first bank
    std::map<std::string, std::string> bank_versions;                      // of each, by name
    uint32_t context = 0, queued = 0, running = 0;
    uint64_t kv_tokens = 0, generated_tokens = 0;
    bool draining = false;
  };

  static absl::StatusOr<std::unique_ptr<WorkerClient>> Create(const Options& options);
  ~WorkerClient();

  // `on_part` gets the parts as they come, on this thread; when it returns false the request is cancelled (CANCELLED).
  absl::StatusOr<Answer> Generate(const Prompt& prompt, const Memory& memory, const Sampling& sampling,
                                  const std::function<bool(const Part&)>& on_part);
  absl::StatusOr<std::vector<Score>> ScoreAll(const std::vector<ScoreItem>& items);
  absl::StatusOr<std::vector<int32_t>> Tokenize(const std::string& text, bool parse_special = false);
  absl::StatusOr<std::string> Detokenize(const std::vector<int32_t>& ids, bool keep_special = false);
  absl::StatusOr<Status> GetStatus();
  // New sequences get this version (empty: the live head) of the bank (empty: the first), those in flight keep theirs; which one they got before.
  absl::StatusOr<std::string> UseBankVersion(const std::string& bank, const std::string& bank_version, bool check_only);
  // Refuses new work; how many sequences were left at the timeout.
  absl::StatusOr<uint32_t> Drain(std::chrono::milliseconds timeout);

 private:
  struct Connection;
  explicit WorkerClient(std::unique_ptr<Connection> connection);
  const std::unique_ptr<Connection> connection_;
};

}  // namespace membank
