#include "common/text/bert_normalizer.h"

#include <utf8proc.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <memory>

#include "common/base/status_macros.h"
#include "common/text/utf8.h"

namespace membank {
namespace {

enum Class : uint8_t { kOther, kDropped, kSpace, kMark, kPunctuation, kIdeograph };

struct Range {
  uint32_t first, last;
  Class kind;
};

constexpr Range kRanges[] = {
#include "common/text/bert_table.inc"
};

Class LookUp(uint32_t c) {
  const Range* range = std::lower_bound(std::begin(kRanges), std::end(kRanges), c, [](const Range& r, uint32_t value) { return r.last < value; });
  return range != std::end(kRanges) && range->first <= c ? range->kind : kOther;
}

Class ClassOf(uint32_t c) {
  static const std::array<Class, 128> ascii = [] {
    std::array<Class, 128> table;
    for (uint32_t i = 0; i < table.size(); ++i) table[i] = LookUp(i);
    return table;
  }();
  return c < ascii.size() ? ascii[c] : LookUp(c);
}

bool IsAscii(std::string_view text) {
  return std::all_of(text.begin(), text.end(), [](char c) { return static_cast<uint8_t>(c) < 0x80; });
}

absl::StatusOr<std::string> Decompose(std::string_view text) {
  utf8proc_uint8_t* out = nullptr;
  const utf8proc_ssize_t size = utf8proc_map(reinterpret_cast<const utf8proc_uint8_t*>(text.data()), static_cast<utf8proc_ssize_t>(text.size()),
                                             &out, static_cast<utf8proc_option_t>(UTF8PROC_STABLE | UTF8PROC_DECOMPOSE));
  if (size < 0) return Internal("decomposing {} bytes: {}", text.size(), utf8proc_errmsg(size));
  const std::unique_ptr<utf8proc_uint8_t, decltype(&std::free)> owner(out, std::free);
  return std::string(reinterpret_cast<const char*>(out), static_cast<size_t>(size));
}

void AppendLower(uint32_t c, std::string& text) {
  if (c == 0x130) {   // the only character whose lower case is two
    text += "i\xcc\x87";
  } else {
    AppendUtf8(static_cast<uint32_t>(utf8proc_tolower(static_cast<utf8proc_int32_t>(c))), text);
  }
}

// One pass over the characters: `change(character, class, out)` appends what becomes of each.
template <typename Change>
std::string Map(std::string_view text, Change change) {
  std::string out;
  out.reserve(text.size() + text.size() / 4);
  while (!text.empty()) {
    const Utf8Sequence sequence = NextUtf8(text);
    change(sequence.code_point, ClassOf(sequence.code_point), out);
    text.remove_prefix(sequence.length);
  }
  return out;
}

}  // namespace

absl::StatusOr<std::string> BertNormalize(std::string_view text, const BertRules& rules) {
  std::string result = Map(text, [&rules](uint32_t c, Class kind, std::string& out) {
    if (kind == kDropped) return;
    if (kind == kSpace) {
      out += ' ';
    } else if (rules.handle_chinese_chars && kind == kIdeograph) {
      out += ' ';
      AppendUtf8(c, out);
      out += ' ';
    } else {
      AppendUtf8(c, out);
    }
  });
  if (rules.strip_accents && !IsAscii(result)) {
    ASSIGN_OR_RETURN(result, Decompose(result));
  }
  return Map(result, [&rules](uint32_t c, Class kind, std::string& out) {
    if (rules.strip_accents && kind == kMark) return;
    if (rules.lowercase) {
      AppendLower(c, out);
    } else {
      AppendUtf8(c, out);
    }
  });
}

std::vector<std::string_view> BertWords(std::string_view text) {
  std::vector<std::string_view> words;
  size_t begin = 0;
  const auto cut = [&](size_t end) {
    if (end > begin) words.push_back(text.substr(begin, end - begin));
  };
  for (size_t i = 0; i < text.size();) {
    const Utf8Sequence sequence = NextUtf8(text.substr(i));
    const Class kind = ClassOf(sequence.code_point);
    if (kind == kSpace || kind == kPunctuation) {
      cut(i);
      begin = i + (kind == kSpace ? sequence.length : 0);
      if (kind == kPunctuation) {
        cut(i + sequence.length);
        begin = i + sequence.length;
      }
    }
    i += sequence.length;
  }
  cut(text.size());
  return words;
}

}  // namespace membank
