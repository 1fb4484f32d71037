#include "common/text/normalizer.h"

#include <utf8proc.h>

#include <algorithm>
#include <cstdlib>

#include "common/base/status_macros.h"
#include "common/text/pre_tokenizer.h"
#include "common/text/utf8.h"

namespace membank {
namespace {

// Characters that Hugging Face's normalisers take as they are: assigned after the Unicode version of their tables.
struct Range {
  uint32_t first, last;
};
constexpr Range kInert[] = {
#include "common/text/inert_table.inc"
};

bool IsInert(uint32_t c) {
  const Range* range = std::lower_bound(std::begin(kInert), std::end(kInert), c, [](const Range& r, uint32_t value) { return r.last < value; });
  return range != std::end(kInert) && range->first <= c;
}

absl::Status AppendForm(UnicodeForm form, std::string_view text, std::string& out) {
  static constexpr int kOptions[] = {UTF8PROC_COMPOSE, UTF8PROC_DECOMPOSE, UTF8PROC_COMPOSE | UTF8PROC_COMPAT, UTF8PROC_DECOMPOSE | UTF8PROC_COMPAT};
  utf8proc_uint8_t* mapped = nullptr;
  const utf8proc_ssize_t size =
      utf8proc_map(reinterpret_cast<const utf8proc_uint8_t*>(text.data()), static_cast<utf8proc_ssize_t>(text.size()), &mapped,
                   static_cast<utf8proc_option_t>(UTF8PROC_STABLE | kOptions[static_cast<int>(form)]));
  const std::unique_ptr<utf8proc_uint8_t, decltype(&std::free)> owned(mapped, std::free);
  if (size < 0) return Internal("normalising {} bytes of text: {}", text.size(), utf8proc_errmsg(size));
  out.append(reinterpret_cast<const char*>(mapped), static_cast<size_t>(size));
  return absl::OkStatus();
}

absl::Status ApplyForm(UnicodeForm form, std::string& text) {
  if (std::none_of(text.begin(), text.end(), [](char c) { return static_cast<uint8_t>(c) >= 0x80; })) return absl::OkStatus();
  const std::string_view whole = text;
  std::string out;
  size_t begin = 0;   // of what is not yet normalised
  for (size_t at = 0; at < whole.size();) {
    const Utf8Sequence next = NextUtf8(whole.substr(at));
    if (IsInert(next.code_point)) {
      RETURN_IF_ERROR(AppendForm(form, whole.substr(begin, at - begin), out));
      begin = at + next.length;
      out += whole.substr(at, next.length);
    }
    at += next.length;
  }
  RETURN_IF_ERROR(AppendForm(form, whole.substr(begin), out));
  text = std::move(out);
  return absl::OkStatus();
}

// The next characters of a SentencePiece text, mapped; their length in `length`.
std::string_view MapNext(const Charsmap* map, std::string_view text, size_t& length) {
  if (map != nullptr) {
    if (const Charsmap::Match match = map->LongestPrefix(text); match.length > 0) {
      length = match.length;
      return match.replacement;
    }
  }
  length = NextUtf8(text).length;
  return text.substr(0, length);
}

std::string ApplySentencePiece(const SentencePieceRules& rules, std::string_view text) {
  const Charsmap* map = rules.map.get();
  size_t length = 0;
  while (rules.remove_extra_spaces && !text.empty() && MapNext(map, text, length) == " ") text.remove_prefix(length);
  std::string out;
  if (text.empty()) return out;
  out.reserve(text.size() + text.size() / 2);
  if (rules.add_prefix) out += kMetaspace;
  bool after_space = rules.remove_extra_spaces;
  while (!text.empty()) {
    std::string_view next = MapNext(map, text, length);
    text.remove_prefix(length);
    while (after_space && !next.empty() && next[0] == ' ') next.remove_prefix(1);
    if (next.empty()) continue;
    after_space = rules.remove_extra_spaces && next.back() == ' ';
    for (char c : next) {
      if (c == ' ') {
        out += kMetaspace;
      } else {
        out += c;
      }
    }
  }
  while (rules.remove_extra_spaces && out.size() >= kMetaspace.size() && out.compare(out.size() - kMetaspace.size(), kMetaspace.size(), kMetaspace) == 0) {
    out.resize(out.size() - kMetaspace.size());
  }
  return out;
}

}  // namespace

absl::Status Normalize(const std::vector<NormalizerStep>& steps, std::string& text) {
  for (const NormalizerStep& step : steps) RETURN_IF_ERROR(step.apply(text));
  return absl::OkStatus();
}

NormalizerStep ToUnicodeForm(UnicodeForm form) {
  static constexpr const char* kNames[] = {"NFC", "NFD", "NFKC", "NFKD"};
  return {kNames[static_cast<int>(form)], [form](std::string& text) { return ApplyForm(form, text); }};
}

NormalizerStep ReplaceText(const std::string& from, const std::string& to) {
  return {fmt::format("replace {} {} {}", from.size(), from, to), [from, to](std::string& text) {
            ReplaceAll(text, from, to);
            return absl::OkStatus();
          }};
}

NormalizerStep ReplacePattern(SplitPattern pattern, const std::string& to) {
  std::string description = fmt::format("replace pattern {} {} {}", pattern.pattern().size(), pattern.pattern(), to);
  return {std::move(description), [pattern = std::move(pattern), to](std::string& text) -> absl::Status {
            std::vector<SplitPattern::Part> parts;
            RETURN_IF_ERROR(pattern.Split(text, parts));
            std::string replaced;
            for (const SplitPattern::Part& part : parts) replaced += part.matched ? std::string_view(to) : part.text;
            text = std::move(replaced);
            return absl::OkStatus();
          }};
}

NormalizerStep PrependText(const std::string& prefix) {
  return {fmt::format("prepend {}", prefix), [prefix](std::string& text) {
            if (!text.empty()) text.insert(0, prefix);
            return absl::OkStatus();
          }};
}

NormalizerStep NormalizeBert(const BertRules& rules) {
  return {"BERT", [rules](std::string& text) -> absl::Status {
            ASSIGN_OR_RETURN(text, BertNormalize(text, rules));
            return absl::OkStatus();
          }};
}

NormalizerStep MapCharacters(std::shared_ptr<const Charsmap> map) {
  return {fmt::format("map {}", map->bytes()), [map](std::string& text) {
            text = map->ReplaceGraphemes(text);
            return absl::OkStatus();
          }};
}

NormalizerStep NormalizeSentencePiece(const SentencePieceRules& rules) {
  std::string description =
      fmt::format("SentencePiece {} {} {}", rules.add_prefix, rules.remove_extra_spaces, rules.map == nullptr ? "" : rules.map->bytes());
  return {std::move(description), [rules](std::string& text) {
            text = ApplySentencePiece(rules, text);
            return absl::OkStatus();
          }};
}

}  // namespace membank
