#include "common/text/added_tokens.h"

#include <utf8proc.h>

#include <algorithm>

#include "common/text/utf8.h"

namespace membank {
namespace {

// White space as Unicode has it (the property White_Space).
bool IsSpace(uint32_t c) {
  return (c >= 9 && c <= 13) || c == 0x20 || c == 0x85 || c == 0xa0 || c == 0x1680 || (c >= 0x2000 && c <= 0x200a) || c == 0x2028 || c == 0x2029 ||
         c == 0x202f || c == 0x205f || c == 0x3000;
}

// What \w matches in Rust's regular expressions: Alphabetic, marks, decimal digits, connectors, joiners.
bool IsWord(uint32_t c) {
  switch (utf8proc_category(static_cast<utf8proc_int32_t>(c))) {
    case UTF8PROC_CATEGORY_LU: case UTF8PROC_CATEGORY_LL: case UTF8PROC_CATEGORY_LT: case UTF8PROC_CATEGORY_LM: case UTF8PROC_CATEGORY_LO:
    case UTF8PROC_CATEGORY_MN: case UTF8PROC_CATEGORY_MC: case UTF8PROC_CATEGORY_ME: case UTF8PROC_CATEGORY_ND: case UTF8PROC_CATEGORY_NL:
    case UTF8PROC_CATEGORY_PC: return true;
    default: break;
  }
  const bool circled = (c >= 0x24b6 && c <= 0x24e9) || (c >= 0x1f130 && c <= 0x1f149) || (c >= 0x1f150 && c <= 0x1f169) || (c >= 0x1f170 && c <= 0x1f189);
  return circled || c == 0x200c || c == 0x200d;
}

uint32_t LastCharacter(std::string_view text) {
  size_t at = text.size() - 1;
  while (at > 0 && (static_cast<uint8_t>(text[at]) & 0xc0) == 0x80) --at;
  return NextUtf8(text.substr(at)).code_point;
}

bool InsideWord(std::string_view text, size_t begin, size_t end) {
  return (begin > 0 && IsWord(LastCharacter(text.substr(0, begin)))) || (end < text.size() && IsWord(NextUtf8(text.substr(end)).code_point));
}

const std::string& Pattern(const AddedToken& token) { return token.pattern.empty() ? token.content : token.pattern; }

}  // namespace

AddedTokens::AddedTokens(std::vector<AddedToken> tokens) : tokens_(std::move(tokens)) {
  for (size_t i = 0; i < tokens_.size(); ++i) {
    const std::string& pattern = Pattern(tokens_[i]);
    index_[pattern] = static_cast<int32_t>(i);
    std::vector<size_t>& lengths = lengths_[static_cast<uint8_t>(pattern[0])];
    if (std::find(lengths.begin(), lengths.end(), pattern.size()) == lengths.end()) lengths.push_back(pattern.size());
  }
  for (std::vector<size_t>& lengths : lengths_) std::sort(lengths.rbegin(), lengths.rend());
}

const AddedToken* AddedTokens::FindAt(std::string_view text, size_t at) const {
  for (size_t length : lengths_[static_cast<uint8_t>(text[at])]) {
    if (length > text.size() - at) continue;
    const int32_t index = Lookup(index_, text.substr(at, length));
    if (index >= 0) return &tokens_[index];
  }
  return nullptr;
}

std::vector<AddedTokens::Segment> AddedTokens::Split(std::string_view text, bool parse_special) const {
  std::vector<Segment> segments;
  size_t begin = 0;   // of the plain text not yet cut off
  for (size_t at = 0; at < text.size();) {
    const AddedToken* token = FindAt(text, at);
    if (token == nullptr) {
      ++at;
      continue;
    }
    size_t first = at, end = at + Pattern(*token).size();
    at = end;   // also when it does not count, as in Hugging Face's search
    if ((token->special && !parse_special) || (token->single_word && InsideWord(text, first, end))) continue;
    while (token->lstrip && first > begin && IsSpace(LastCharacter(text.substr(0, first)))) {
      do --first;
      while ((static_cast<uint8_t>(text[first]) & 0xc0) == 0x80);
    }
    while (token->rstrip && end < text.size()) {
      const Utf8Sequence next = NextUtf8(text.substr(end));
      if (!IsSpace(next.code_point)) break;
      end += next.length;
    }
    if (first > begin) segments.push_back({text.substr(begin, first - begin)});
    segments.push_back({text.substr(first, end - first), token->id});
    begin = end;
  }
  if (begin < text.size()) segments.push_back({text.substr(begin)});
  return segments;
}

}  // namespace membank
