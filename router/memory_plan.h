// Which banks a request uses, and where the path of each comes from. Pure functions of the request and of what is served; errors name the
// field and what is allowed.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "membank/v1/router.pb.h"
#include "router/path_finder.h"

namespace membank {

// A bank as the router knows it: the first one or one stacked on it.
struct PlannedBank {
  std::string name;                  // empty: no worker has told it yet
  uint32_t fan_out = 0, depth = 0;   // of its paths; 0: not known
  std::optional<size_t> tree;        // the router's tree that resolves texts to its paths
};

// What a sequence gets of one bank.
struct BankPlan {
  BlockPath path;                    // mode none: the bank is not used
  bool by_text = false;              // the path is still to be found
};

// The banks that workers told of, with their trees. Without any, one whose name nobody knows.
std::vector<PlannedBank> PlanBanks(const std::vector<v1::BankSpec>& told, const std::vector<TreeFacts>& trees);

// One entry per bank.
absl::StatusOr<std::vector<BankPlan>> PlanMemory(const v1::MemoryOptions& memory, const std::vector<PlannedBank>& banks);

}  // namespace membank
