#include "common/corpus/encoding.h"

#include "common/base/status_macros.h"
#include "common/text/tokenizer.h"

namespace membank {
namespace {

constexpr std::string_view kByteOrderMark = "\xEF\xBB\xBF";

std::string Latin1ToUtf8(std::string_view bytes) {
  std::string text;
  text.reserve(bytes.size() + bytes.size() / 16);
  for (const char c : bytes) {
    const auto byte = static_cast<unsigned char>(c);
    if (byte < 0x80) {
      text += c;
    } else {
      text += static_cast<char>(0xC0 | byte >> 6);
      text += static_cast<char>(0x80 | (byte & 0x3F));
    }
  }
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
