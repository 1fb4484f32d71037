#include "common/text/pre_tokenizer.h"

#include <memory>

#include "common/base/status_macros.h"
#include "common/text/bert_normalizer.h"

namespace membank {
namespace {

void Append(const TextPiece& whole, std::string_view part, std::vector<TextPiece>& pieces) {
  if (!part.empty()) pieces.push_back({part, whole.begins_text && part.data() == whole.text.data()});
}

// Appends the pieces of `whole`, given what the pattern matches in it.
void Cut(const TextPiece& whole, const std::vector<SplitPattern::Part>& parts, SplitBehavior behavior, std::vector<TextPiece>& pieces) {
  const char* begin = whole.text.data();   // of a merged piece not yet appended
  for (size_t i = 0; i < parts.size(); ++i) {
    const std::string_view text = parts[i].text;
    const char* end = text.data() + text.size();
    switch (behavior) {
      case SplitBehavior::kIsolated: Append(whole, text, pieces); break;
      case SplitBehavior::kRemoved:
        if (!parts[i].matched) Append(whole, text, pieces);
        break;
      case SplitBehavior::kMergedWithPrevious:   // a match ends a piece; matches in a row stand alone
        if (parts[i].matched || i + 1 == parts.size() || !parts[i + 1].matched) {
          Append(whole, {begin, static_cast<size_t>(end - begin)}, pieces);
          begin = end;
        }
        break;
      case SplitBehavior::kMergedWithNext:       // a match begins a piece
        if (!parts[i].matched || i + 1 == parts.size() || parts[i + 1].matched) {
          Append(whole, {begin, static_cast<size_t>(end - begin)}, pieces);
          begin = end;
        }
        break;
    }
  }
}

std::string_view Name(SplitBehavior behavior) {
  switch (behavior) {
    case SplitBehavior::kIsolated: return "";
    case SplitBehavior::kRemoved: return "removed ";
    case SplitBehavior::kMergedWithPrevious: return "merged with previous ";
    case SplitBehavior::kMergedWithNext: return "merged with next ";
  }
  return "";
}

std::vector<TextPiece> TakePieces(TextPieces& text) {
  std::vector<TextPiece> pieces;
  pieces.swap(text.pieces);
  return pieces;
}

}  // namespace

void ReplaceAll(std::string& text, std::string_view from, std::string_view to) {
  size_t at = text.find(from);
  if (at == std::string::npos) return;
  std::string result;
  result.reserve(text.size() + text.size() / 2);
  size_t begin = 0;
  for (; at != std::string::npos; at = text.find(from, begin)) {
    result.append(text, begin, at - begin).append(to);
    begin = at + from.size();
  }
  text = result.append(text, begin, std::string::npos);
}

PreTokenizerStep SplitBy(SplitPattern pattern, SplitBehavior behavior) {
  std::string description = fmt::format("{}{}", Name(behavior), pattern.pattern());
  return {std::move(description), [pattern = std::move(pattern), behavior](TextPieces& text) -> absl::Status {
            const std::vector<TextPiece> pieces = TakePieces(text);
            std::vector<SplitPattern::Part> parts;
            for (const TextPiece& piece : pieces) {
              parts.clear();
              RETURN_IF_ERROR(pattern.Split(piece.text, parts));
              Cut(piece, parts, behavior, text.pieces);
            }
            return absl::OkStatus();
          }};
}

PreTokenizerStep PrefixSpace() {
  return {"prefix space", [](TextPieces& text) {
            for (TextPiece& piece : text.pieces) {
              if (piece.text[0] != ' ') piece.text = text.changed.emplace_back(fmt::format(" {}", piece.text));
            }
            return absl::OkStatus();
          }};
}

PreTokenizerStep SplitBertWords() {
  return {"BERT words", [](TextPieces& text) {
            for (const TextPiece& piece : TakePieces(text)) {
              for (std::string_view word : BertWords(piece.text)) Append(piece, word, text.pieces);
            }
            return absl::OkStatus();
          }};
}

PreTokenizerStep Metaspace(PrependScheme prepend, bool split) {
  return {fmt::format("metaspace {} {}", static_cast<int>(prepend), split), [prepend, split](TextPieces& text) {
            for (const TextPiece& piece : TakePieces(text)) {
              std::string& changed = text.changed.emplace_back(piece.text);
              ReplaceAll(changed, " ", kMetaspace);
              const bool wanted = prepend == PrependScheme::kAlways || (prepend == PrependScheme::kFirst && piece.begins_text);
              if (wanted && changed.compare(0, kMetaspace.size(), kMetaspace) != 0) changed.insert(0, kMetaspace);
              const TextPiece whole{changed, piece.begins_text};
              size_t begin = 0;
              while (split && begin < changed.size()) {
                const size_t end = std::min(changed.find(kMetaspace, begin + 1), changed.size());
                Append(whole, whole.text.substr(begin, end - begin), text.pieces);
                begin = end;
              }
              Append(whole, whole.text.substr(begin), text.pieces);
            }
            return absl::OkStatus();
          }};
}

}  // namespace membank
