#include "common/corpus/encoding.h"

#include <cstdint>

#include "common/base/status_macros.h"
#include "common/text/tokenizer.h"

namespace membank {
namespace {

constexpr std::string_view kByteOrderMark = "\xEF\xBB\xBF";

// Windows-1252 where it has a character (0x80 to 0x9F; the C1 controls of true Latin-1 are in no text), as browsers read Latin-1.
constexpr uint16_t kWindows1252[32] = {0x20AC, 0x81,   0x201A, 0x192,  0x201E, 0x2026, 0x2020, 0x2021, 0x2C6,  0x2030, 0x160,
                                       0x2039, 0x152,  0x8D,   0x17D,  0x8F,   0x90,   0x2018, 0x2019, 0x201C, 0x201D, 0x2022,
                                       0x2013, 0x2014, 0x2DC,  0x2122, 0x161,  0x203A, 0x153,  0x9D,   0x17E,  0x178};

void AppendUtf8(uint16_t code, std::string& text) {
  if (code < 0x80) {
    text += static_cast<char>(code);
    return;
  }
  if (code < 0x800) {
    text += static_cast<char>(0xC0 | code >> 6);
  } else {
    text += static_cast<char>(0xE0 | code >> 12);
    text += static_cast<char>(0x80 | (code >> 6 & 0x3F));
  }
  text += static_cast<char>(0x80 | (code & 0x3F));
}

std::string Latin1ToUtf8(std::string_view bytes) {
  std::string text;
  text.reserve(bytes.size() + bytes.size() / 16);
  for (const unsigned char byte : bytes) AppendUtf8(byte >= 0x80 && byte < 0xA0 ? kWindows1252[byte - 0x80] : byte, text);
  return text;
}

}  // namespace

absl::StatusOr<Encoding> ParseEncoding(std::string_view name) {
  if (name == "utf-8" || name == "utf8") return Encoding::kUtf8;
  if (name == "latin1" || name == "iso-8859-1") return Encoding::kLatin1;
  return InvalidArgument("encoding '{}' is not known; allowed are utf-8 and latin1", name);
}

absl::StatusOr<std::string> ToUtf8(std::string bytes, Encoding encoding, const std::string& file) {
  const size_t bad = FindInvalidUtf8(bytes);
  if (bad == std::string_view::npos) {
    if (bytes.starts_with(kByteOrderMark)) bytes.erase(0, kByteOrderMark.size());
    return bytes;
  }
  if (encoding == Encoding::kLatin1) return Latin1ToUtf8(bytes);
  return InvalidArgument("{}: not UTF-8: byte 0x{:02x} at offset {}; if the file is Latin-1 (ISO 8859-1), say `--encoding latin1` after its --input",
                         file, static_cast<unsigned char>(bytes[bad]), bad);
}

}  // namespace membank
