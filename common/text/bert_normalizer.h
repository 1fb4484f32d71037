// BERT's view of text: normalised and cut into words as Hugging Face's BertNormalizer and BertPreTokenizer do, with
// clean_text. Pure functions.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

namespace membank {

struct BertRules {
  bool handle_chinese_chars, strip_accents, lowercase;
};

absl::StatusOr<std::string> BertNormalize(std::string_view text, const BertRules& rules);   // `text` is valid UTF-8

// The words of a normalised text: separated by spaces, each punctuation character a word of its own.
std::vector<std::string_view> BertWords(std::string_view normalised);

}  // namespace membank
