// SentencePiece's table of replaced characters ("precompiled_charsmap"): a double-array trie (darts-clone) over UTF-8 and the texts that
// its leaves point to. Immutable after Parse; any thread.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

namespace membank {

class Charsmap {
 public:
  // INVALID_ARGUMENT when the bytes are no such table.
  static absl::StatusOr<Charsmap> Parse(std::string bytes);

  struct Match {
    size_t length = 0;               // 0: nothing is replaced here
    std::string_view replacement;
  };
  Match LongestPrefix(std::string_view text) const;    // SentencePiece's rule

  // Hugging Face's rule: each grapheme of at most 5 bytes with a replaced prefix becomes the replacement of the shortest such prefix; else
  // so does each of its characters.
  std::string ReplaceGraphemes(std::string_view text) const;

  const std::string& bytes() const { return bytes_; }

 private:
  // Calls use(length, leaf) for each prefix of `text` in the trie, the shortest first, until it returns false.
  template <typename Use>
  void ForEachPrefix(std::string_view text, const Use& use) const;
  Match ShortestPrefix(std::string_view text) const;
  std::string_view Text(uint32_t leaf) const;

  std::string bytes_;
  std::vector<uint32_t> units_;
  std::string texts_;   // each ended by a zero
};

}  // namespace membank
