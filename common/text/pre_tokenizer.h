// The steps that cut normalised text into the pieces a model encodes one by one (Hugging Face's pre-tokenizers).
#pragma once

#include <deque>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "common/text/split_pattern.h"

namespace membank {

struct TextPiece {
  std::string_view text;      // not empty
  bool begins_text = false;   // nothing of the whole text comes before it
};

struct TextPieces {
  std::vector<TextPiece> pieces;
  std::deque<std::string> changed;   // owns the text of pieces that a step has changed
};

// Immutable; any thread. The description decides a tokenizer's fingerprint.
struct PreTokenizerStep {
  std::string description;
  std::function<absl::Status(TextPieces&)> apply;
};

enum class SplitBehavior { kIsolated, kRemoved, kMergedWithPrevious, kMergedWithNext };   // of what the pattern matches

// The description of an isolating split is the pattern itself.
PreTokenizerStep SplitBy(SplitPattern pattern, SplitBehavior behavior = SplitBehavior::kIsolated);
// A space before each piece that does not begin with one (ByteLevel's add_prefix_space).
PreTokenizerStep PrefixSpace();
// BertPreTokenizer.
PreTokenizerStep SplitBertWords();

enum class PrependScheme { kAlways, kFirst, kNever };
// Spaces become U+2581, one comes before each piece or the text; `split`: each begins a piece.
PreTokenizerStep Metaspace(PrependScheme prepend, bool split);

inline constexpr std::string_view kMetaspace = "\xe2\x96\x81";

// All of `from` in `text` become `to`.
void ReplaceAll(std::string& text, std::string_view from, std::string_view to);

}  // namespace membank
