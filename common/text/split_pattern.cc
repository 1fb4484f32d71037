#define PCRE2_CODE_UNIT_WIDTH 8
#include "common/text/split_pattern.h"

#include <pcre2.h>

#include <cctype>

#include "common/base/status_macros.h"

namespace membank {
namespace {

std::string ErrorText(int error) {
  PCRE2_UCHAR8 text[256];
  pcre2_get_error_message_8(error, text, sizeof(text));
  return reinterpret_cast<const char*>(text);
}

// PCRE2's \s also matches U+180E, which lost the White_Space property in Unicode 6.3; Oniguruma, Hugging Face's engine, follows Unicode.
std::string FollowUnicodeSpaces(const std::string& pattern) {
  std::string result;
  for (size_t i = 0; i < pattern.size(); ++i) {
    if (pattern[i] != '\\' || i + 1 == pattern.size()) {
      result += pattern[i];
      continue;
    }
    ++i;
    if (pattern[i] == 's') {
      result += "\\p{White_Space}";
    } else if (pattern[i] == 'S') {
      result += "\\P{White_Space}";
    } else {
      result += {'\\', pattern[i]};
    }
  }
  return result;
}

}  // namespace

absl::StatusOr<SplitPattern> SplitPattern::Compile(const std::string& pattern) {
  const std::string translated = FollowUnicodeSpaces(pattern);
  int error = 0;
  PCRE2_SIZE offset = 0;
  pcre2_code_8* code = pcre2_compile_8(reinterpret_cast<PCRE2_SPTR8>(translated.data()), translated.size(),
                                       PCRE2_UTF | PCRE2_UCP | PCRE2_NEVER_BACKSLASH_C, &error, &offset, nullptr);
  if (code == nullptr) return InvalidArgument("split pattern '{}': {} (at offset {} of '{}')", pattern, ErrorText(error), offset, translated);
  SplitPattern result;
  result.pattern_ = pattern;
  result.code_ = std::shared_ptr<const pcre2_code_8>(code, [](const pcre2_code_8* c) { pcre2_code_free_8(const_cast<pcre2_code_8*>(c)); });
  pcre2_jit_compile_8(code, PCRE2_JIT_COMPLETE);   // where it fails, pcre2_match interprets
  return result;
}

absl::StatusOr<SplitPattern> SplitPattern::CompileLiteral(const std::string& text) {
  std::string pattern;
  for (char c : text) {   // PCRE2 takes a backslash before any other ASCII character literally
    if (static_cast<uint8_t>(c) < 0x80 && !std::isalnum(static_cast<uint8_t>(c))) pattern += '\\';
    pattern += c;
  }
  return Compile(pattern);
}

absl::Status SplitPattern::Split(std::string_view text, std::vector<Part>& parts) const {
  const auto subject = reinterpret_cast<PCRE2_SPTR8>(text.data());
  const std::unique_ptr<pcre2_match_data_8, void (*)(pcre2_match_data_8*)> match(pcre2_match_data_create_8(1, nullptr), pcre2_match_data_free_8);
  size_t end = 0;   // of the last piece
  while (end < text.size()) {
    int found = pcre2_match_8(code_.get(), subject, text.size(), end, PCRE2_NO_UTF_CHECK, match.get(), nullptr);
    if (found == PCRE2_ERROR_JIT_STACKLIMIT) {
      found = pcre2_match_8(code_.get(), subject, text.size(), end, PCRE2_NO_UTF_CHECK | PCRE2_NO_JIT, match.get(), nullptr);
    }
    if (found == PCRE2_ERROR_NOMATCH) break;
    if (found < 0) return Internal("split pattern '{}' failed at byte {} of {}: {}", pattern_, end, text.size(), ErrorText(found));
    const PCRE2_SIZE* range = pcre2_get_ovector_pointer_8(match.get());
    if (range[1] <= range[0]) return InvalidArgument("split pattern '{}' matches the empty string", pattern_);
    if (range[0] > end) parts.push_back({text.substr(end, range[0] - end), false});
    parts.push_back({text.substr(range[0], range[1] - range[0]), true});
    end = range[1];
  }
  if (end < text.size()) parts.push_back({text.substr(end), false});
  return absl::OkStatus();
}

}  // namespace membank
