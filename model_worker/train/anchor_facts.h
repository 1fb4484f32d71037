// What a bank spec says about its anchor, for programs that do not see Torch (`membank bank create`). Pure function.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"
#include "common/bank/bank_spec.h"

namespace membank {

struct AnchorFacts {
  AnchorShape shape;
  uint64_t parameters = 0;      // a tied head counts once
  std::string fingerprint;      // the origin of a co-trained one: what a bank names
};

// Reads the whole anchor: its fingerprint covers the weights.
absl::StatusOr<AnchorFacts> ReadAnchorFacts(const std::string& path);

}  // namespace membank
