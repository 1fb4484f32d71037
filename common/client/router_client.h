// The client of a router, for the terminal: plain structs, no gRPC or protobuf here. Calls block until done or `timeout`; any thread, many at
// once. Nothing is retried (the router does that); errors name the router.
#pragma once

#include <chrono>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "common/bank/block.h"
#include "common/rpc/tls_files.h"

namespace membank {

struct MemoryChoice {
  MemoryMode mode = MemoryMode::kFetched;
  std::string path;         // "3.5", in the first bank; empty: found by text
  std::string retrieve_on;  // the text to find paths by; empty: the prompt
  std::vector<std::string> banks;            // by name; empty: those with an explicit path, or all when there is none
  std::map<std::string, std::string> paths;  // by bank
};

// What an answer was made with.
struct MemoryReport {
  std::string path_text;    // "3.5", "generic" or "none"
  std::string bank_id, bank_version;
  std::vector<BlockId> blocks;
  std::vector<float> distances;  // per level, when the path was found by text
  bool no_rights = false;        // the worker may not read the bank: the answer was made without it
  std::vector<MemoryReport> stacked;  // of the banks stacked on the first one
  std::string worker;
};

struct RouterGenerateRequest {
  std::string prompt;
  bool parse_special = false;
  MemoryChoice memory;
  uint32_t max_tokens = 64;
  float temperature = 0, top_p = 1;
  uint64_t seed = 0;
  std::vector<std::string> stop;
};

struct RouterGenerateReply {
  std::string text;
  MemoryReport memory;
  uint32_t prompt_tokens = 0, completion_tokens = 0;
  double first_token_ms = 0, total_ms = 0;
};

struct RouterScoreItem {
  std::string context, continuation;
  MemoryChoice memory;
};

struct RouterScore {
  double sum = 0;        // natural log-probability of the continuation
  size_t tokens = 0;
  bool is_greedy = false;
  MemoryReport memory;
};

struct ResolvedPath {
  BlockPath path;
  std::string path_text;
  std::vector<float> distances;
  std::string bank;
  std::vector<ResolvedPath> stacked;  // in the trees of the banks stacked on the first one
};

struct BankFacts {
  std::string bank_id, bank_version;
  uint32_t fan_out = 0, depth = 0;
};

struct RouterFacts {
  uint32_t fan_out = 0, depth = 0;           // of the first tree
  size_t healthy_workers = 0;
  std::string model, bank_id, bank_version;  // of the first healthy worker
  std::string chat_template, chat_system;    // how its conversations are written; empty: it knows none of ours
  std::vector<BankFacts> banks;              // all of it
};

// The workers of a router, healthy or not.
absl::StatusOr<std::vector<std::string>> WorkersOf(const std::string& router, const TlsFiles& tls, std::chrono::milliseconds timeout);

class RouterClient {
 public:
  // Waits until the router answers and has a healthy worker; UNAVAILABLE after `timeout`.
  static absl::StatusOr<std::unique_ptr<RouterClient>> Connect(const std::string& address,
                                                               std::chrono::milliseconds timeout = std::chrono::seconds(30));
  virtual ~RouterClient() = default;

  virtual absl::StatusOr<RouterFacts> Status() = 0;
  // `on_text` gets the text as it comes; false ends the answer.
  virtual absl::StatusOr<RouterGenerateReply> Generate(const RouterGenerateRequest& request,
                                                       const std::function<bool(std::string_view)>& on_text = {}) = 0;
  virtual absl::StatusOr<std::vector<RouterScore>> Score(const std::vector<RouterScoreItem>& items) = 0;
  virtual absl::StatusOr<std::vector<ResolvedPath>> Resolve(const std::vector<std::string>& texts) = 0;
};

}  // namespace membank
