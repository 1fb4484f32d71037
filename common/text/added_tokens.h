// Tokens that are found in a text before anything else: special ones ("<|im_end|>") and others added to a vocabulary. The leftmost and
// longest is found first, as Hugging Face's tokenizers does. Immutable; any thread.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "common/text/text_map.h"

namespace membank {

struct AddedToken {
  int32_t id = 0;
  std::string content;
  bool special = false;       // recognised only on request, left out of decoded text
  bool normalized = false;    // looked for in the normalised text
  std::string pattern;        // what is looked for where that is not the content (the content, normalised)
  bool single_word = false;   // not inside a word
  bool lstrip = false;        // takes the white space before it
  bool rstrip = false;        // takes the white space behind it
};

class AddedTokens {
 public:
  // Of two tokens with one pattern the last counts.
  explicit AddedTokens(std::vector<AddedToken> tokens);

  struct Segment {
    std::string_view text;
    int32_t id = -1;   // of an added token; -1: plain text
  };
  std::vector<Segment> Split(std::string_view text, bool parse_special) const;

 private:
  const AddedToken* FindAt(std::string_view text, size_t at) const;

  std::vector<AddedToken> tokens_;
  TokenMap index_;                                     // into tokens_ by pattern
  std::array<std::vector<size_t>, 256> lengths_;       // of the patterns by first byte, longest first
};

}  // namespace membank
