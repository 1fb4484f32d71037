// The heart of a tokenizer: the ids of a piece of text that needs no further preparation. Immutable; any thread.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "common/text/pre_tokenizer.h"

namespace membank {

class TokenModel {
 public:
  virtual ~TokenModel() = default;
  // Appends the ids of the pieces, which are valid UTF-8 and not empty.
  virtual absl::Status Encode(const std::vector<TextPiece>& pieces, std::vector<int32_t>& ids) const = 0;
};

}  // namespace membank
