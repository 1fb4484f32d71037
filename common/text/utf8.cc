#include "common/text/utf8.h"

#include <cstring>

#include "common/text/tokenizer.h"

namespace membank {
namespace {

constexpr std::string_view kReplacement = "\xef\xbf\xbd";

}  // namespace

Utf8Sequence NextUtf8(std::string_view text) {
  const auto byte = [text](size_t i) { return static_cast<uint8_t>(text[i]); };
  const uint8_t lead = byte(0);
  if (lead < 0x80) return {Utf8Sequence::kValid, 1, lead};
  if (lead < 0xc2 || lead > 0xf4) return {Utf8Sequence::kInvalid, 1, 0};
  const size_t length = lead < 0xe0 ? 2 : lead < 0xf0 ? 3 : 4;
  uint32_t code_point = lead & (0x7fu >> length);
  for (size_t i = 1; i < length; ++i) {
    if (i == text.size()) return {Utf8Sequence::kTruncated, i, 0};
    // The second byte's range excludes overlong forms, surrogates and what lies above U+10FFFF (Unicode, table 3-7).
    const uint8_t low = i > 1 ? 0x80 : lead == 0xe0 ? 0xa0 : lead == 0xf0 ? 0x90 : 0x80;
    const uint8_t high = i > 1 ? 0xbf : lead == 0xed ? 0x9f : lead == 0xf4 ? 0x8f : 0xbf;
    if (byte(i) < low || byte(i) > high) return {Utf8Sequence::kInvalid, i, 0};
    code_point = code_point << 6 | (byte(i) & 0x3fu);
  }
  return {Utf8Sequence::kValid, length, code_point};
}

void AppendUtf8(uint32_t c, std::string& text) {
  const auto tail = [c](int shift) { return static_cast<char>(0x80 | ((c >> shift) & 0x3f)); };
  if (c < 0x80) {
    text += static_cast<char>(c);
  } else if (c < 0x800) {
    text += {static_cast<char>(0xc0 | c >> 6), tail(0)};
  } else if (c < 0x10000) {
    text += {static_cast<char>(0xe0 | c >> 12), tail(6), tail(0)};
  } else {
    text += {static_cast<char>(0xf0 | c >> 18), tail(12), tail(6), tail(0)};
  }
}

size_t FindInvalidUtf8(std::string_view text) {
  for (size_t i = 0; i < text.size();) {
    uint64_t eight;
    if (text.size() - i >= sizeof(eight)) {
      std::memcpy(&eight, text.data() + i, sizeof(eight));
      if ((eight & 0x8080808080808080u) == 0) {
        i += sizeof(eight);
        continue;
      }
    }
    const Utf8Sequence sequence = NextUtf8(text.substr(i));
    if (sequence.kind != Utf8Sequence::kValid) return i;
    i += sequence.length;
  }
  return std::string_view::npos;
}

absl::StatusOr<std::string> StreamDecoder::Push(int32_t id) {
  absl::StatusOr<std::string> piece = tokenizer_.DecodeNext(id);
  if (!piece.ok()) return piece.status();
  pending_ += *piece;
  std::string complete;
  size_t done = 0;
  while (done < pending_.size()) {
    const Utf8Sequence sequence = NextUtf8(std::string_view(pending_).substr(done));
    if (sequence.kind == Utf8Sequence::kTruncated) break;
    complete += sequence.kind == Utf8Sequence::kValid ? std::string_view(pending_).substr(done, sequence.length) : kReplacement;
    done += sequence.length;
  }
  pending_.erase(0, done);
  return complete;
}

std::string StreamDecoder::Finish() {
  const bool broken = !pending_.empty();   // Push leaves at most one truncated sequence
  pending_.clear();
  return broken ? std::string(kReplacement) : std::string();
}

}  // namespace membank
