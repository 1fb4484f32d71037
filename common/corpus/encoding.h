// Which bytes a source's files are in, and their conversion to UTF-8. Pure functions.
#pragma once

#include <string>
#include <string_view>

#include "absl/status/statusor.h"

namespace membank {

enum class Encoding { kUtf8, kLatin1 };  // Latin-1 with the characters of Windows-1252 in 0x80 to 0x9F, as browsers read it

absl::StatusOr<Encoding> ParseEncoding(std::string_view name);  // "utf-8" (or "utf8"), "latin1" (or "iso-8859-1")

// `bytes` of `file` as UTF-8 without a byte-order mark. kUtf8: INVALID_ARGUMENT names file, offset and byte of what is not UTF-8 and the
// option that converts. kLatin1: converts; a file that is valid UTF-8 stays as it is, so that a folder may mix both.
absl::StatusOr<std::string> ToUtf8(std::string bytes, Encoding encoding, const std::string& file);

}  // namespace membank
