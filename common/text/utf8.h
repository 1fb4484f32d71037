// One UTF-8 sequence at a time: strict (no overlong forms, no surrogates, nothing above U+10FFFF). Pure functions.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace membank {

struct Utf8Sequence {
  enum Kind { kValid, kInvalid, kTruncated };   // kTruncated: more bytes could still make it valid
  Kind kind;
  size_t length;          // of a broken sequence: its maximal subpart, which one U+FFFD replaces (Unicode, section 3.9)
  uint32_t code_point;    // when valid
};

Utf8Sequence NextUtf8(std::string_view text);   // at the beginning of a text that is not empty

void AppendUtf8(uint32_t code_point, std::string& text);

}  // namespace membank
