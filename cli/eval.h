// `membank eval cloze|loss`: the same questions or documents under several memories, through a router; a table and a JSON file.
#pragma once

#include <string>
#include <vector>

#include "CLI/CLI.hpp"
#include "absl/status/status.h"

namespace membank {

struct EvalOptions {
  std::string router = "127.0.0.1:7100";
  std::string input;                                             // JSON Lines
  std::vector<std::string> modes = {"fetched", "generic", "none", "other"};
  std::vector<std::string> banks;                                // of those stacked on each other; empty: all
  std::string json;                                              // output file; empty = none
  uint32_t max_tokens = 8;                                       // cloze: tokens generated per question
};

absl::Status RunCloze(const EvalOptions& options);
absl::Status RunLoss(const EvalOptions& options);

void AddEvalCommand(CLI::App& app);

}  // namespace membank
