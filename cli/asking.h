// What generate and chat have in common: options, and how an answer is shown. Main's thread only.
#pragma once

#include <string>
#include <vector>

#include "CLI/CLI.hpp"
#include "common/client/router_client.h"

namespace membank {

struct AskingOptions {
  std::string router = "127.0.0.1:7100";
  std::string memory = "fetched";
  std::vector<std::string> paths;
  RouterGenerateRequest request;  // max_tokens, temperature, top_p, seed, memory.banks

  void AddOptions(CLI::App* command);
};

absl::StatusOr<MemoryMode> ParseMemoryMode(const std::string& text);  // none, generic, fetched

// Explicit paths: "3.5" in the first bank, "NAME=3.5" in a bank by name. INVALID_ARGUMENT: two for one bank.
absl::Status SetPaths(const std::vector<std::string>& paths, MemoryChoice* memory);

// "path 3.5 (blocks 1/3 2/29, distances 0.61 0.55), bank elements version v1, 12 tokens in 0.8 s".
std::string Describe(const RouterGenerateReply& reply);

// Streams the answer to stdout, then its description to stderr.
absl::StatusOr<RouterGenerateReply> AskAndPrint(RouterClient& client, const RouterGenerateRequest& request);

}  // namespace membank
