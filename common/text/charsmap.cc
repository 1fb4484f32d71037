#include "common/text/charsmap.h"

#include <utf8proc.h>

#include <algorithm>
#include <cstring>

#include "common/base/status_macros.h"
#include "common/text/tokenizer.h"
#include "common/text/utf8.h"

namespace membank {
namespace {

// A unit of darts-clone: the label that leads to it, whether a leaf follows, how far its children are; or, for a leaf, a value.
bool HasLeaf(uint32_t unit) { return (unit >> 8 & 1) != 0; }
uint32_t Label(uint32_t unit) { return unit & (1u << 31 | 0xff); }
uint32_t Offset(uint32_t unit) { return (unit >> 10) << ((unit & 1u << 9) >> 6); }
uint32_t Value(uint32_t unit) { return unit & ((1u << 31) - 1); }

constexpr size_t kMaxGrapheme = 5;   // bytes; longer ones are taken apart

}  // namespace

absl::StatusOr<Charsmap> Charsmap::Parse(std::string bytes) {
  Charsmap map;
  uint32_t size = 0;
  if (bytes.size() >= sizeof(size)) std::memcpy(&size, bytes.data(), sizeof(size));
  if (size == 0 || size % sizeof(uint32_t) != 0 || size > bytes.size() - sizeof(size)) {
    return InvalidArgument("the charsmap of {} bytes is damaged: its trie has {} bytes", bytes.size(), size);
  }
  map.units_.resize(size / sizeof(uint32_t));
  std::memcpy(map.units_.data(), bytes.data() + sizeof(size), size);
  map.texts_ = bytes.substr(sizeof(size) + size);
  if (const size_t bad = FindInvalidUtf8(map.texts_); bad != std::string::npos) {
    return InvalidArgument("the charsmap of {} bytes is damaged: its text is not UTF-8 at byte {}", bytes.size(), bad);
  }
  map.bytes_ = std::move(bytes);
  return map;
}

template <typename Use>
void Charsmap::ForEachPrefix(std::string_view text, const Use& use) const {
  size_t node = Offset(units_[0]);
  for (size_t i = 0; i < text.size() && text[i] != '\0'; ++i) {
    const uint8_t byte = static_cast<uint8_t>(text[i]);
    node ^= byte;
    if (node >= units_.size() || Label(units_[node]) != byte) return;
    const uint32_t unit = units_[node];
    node ^= Offset(unit);
    if (node >= units_.size()) return;
    if (HasLeaf(unit) && !use(i + 1, Value(units_[node]))) return;
  }
}

std::string_view Charsmap::Text(uint32_t leaf) const {
  if (leaf >= texts_.size() || (static_cast<uint8_t>(texts_[leaf]) & 0xc0) == 0x80) return "";   // only in a damaged table
  const std::string_view rest = std::string_view(texts_).substr(leaf);
  return rest.substr(0, std::min(rest.find('\0'), rest.size()));
}

Charsmap::Match Charsmap::LongestPrefix(std::string_view text) const {
  Match longest;
  ForEachPrefix(text, [&](size_t length, uint32_t leaf) {
    longest = {length, Text(leaf)};
    return true;
  });
  if (longest.length < text.size() && (static_cast<uint8_t>(text[longest.length]) & 0xc0) == 0x80) return {};   // only in a damaged table
  return longest;
}

Charsmap::Match Charsmap::ShortestPrefix(std::string_view text) const {
  Match shortest;
  ForEachPrefix(text, [&](size_t length, uint32_t leaf) {
    shortest = {length, Text(leaf)};
    return false;
  });
  return shortest;
}

std::string Charsmap::ReplaceGraphemes(std::string_view text) const {
  std::string out;
  out.reserve(text.size());
  const auto replace = [&](std::string_view part) {
    const Match match = ShortestPrefix(part);
    if (match.length > 0) out += match.replacement;
    return match.length > 0;
  };
  const auto flush = [&](std::string_view grapheme) {
    if (grapheme.size() <= kMaxGrapheme && replace(grapheme)) return;
    for (size_t length = 0; !grapheme.empty(); grapheme.remove_prefix(length)) {
      length = NextUtf8(grapheme).length;
      if (!replace(grapheme.substr(0, length))) out += grapheme.substr(0, length);
    }
  };
  utf8proc_int32_t state = 0, previous = -1;
  size_t begin = 0, at = 0;
  while (at < text.size()) {
    const Utf8Sequence next = NextUtf8(text.substr(at));
    const auto c = static_cast<utf8proc_int32_t>(next.code_point);
    if (previous >= 0 && utf8proc_grapheme_break_stateful(previous, c, &state)) {
      flush(text.substr(begin, at - begin));
      begin = at;
    }
    previous = c;
    at += next.length;
  }
  if (begin < at) flush(text.substr(begin, at - begin));
  return out;
}

}  // namespace membank
