// A regular expression that cuts text into words: what it matches and what lies between matches are pieces ("isolated" in Hugging Face's
// words). PCRE2 with UTF and UCP, compiled to machine code. Immutable after Compile; any thread.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

struct pcre2_real_code_8;

namespace membank {

class SplitPattern {
 public:
  static absl::StatusOr<SplitPattern> Compile(const std::string& pattern);

  const std::string& pattern() const { return pattern_; }
  // Appends the pieces of `text`, which is valid UTF-8 (not checked again here: the caller has).
  absl::Status Split(std::string_view text, std::vector<std::string_view>& pieces) const;

 private:
  std::string pattern_;
  std::shared_ptr<const pcre2_real_code_8> code_;
};

}  // namespace membank
