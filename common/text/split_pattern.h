// A regular expression that cuts text into what it matches and what lies between matches. PCRE2 with UTF and UCP, compiled to machine code. Immutable after Compile; any thread.
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
  static absl::StatusOr<SplitPattern> CompileLiteral(const std::string& text);   // matches the text itself

  const std::string& pattern() const { return pattern_; }
  struct Part {
    std::string_view text;   // not empty
    bool matched;
  };
  // Appends the parts of `text`, which is valid UTF-8 (not checked again here: the caller has).
  absl::Status Split(std::string_view text, std::vector<Part>& parts) const;

 private:
  std::string pattern_;
  std::shared_ptr<const pcre2_real_code_8> code_;
};

}  // namespace membank
