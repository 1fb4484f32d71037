#include "common/text/tokenizer.h"

#include <filesystem>

#include "common/base/file.h"
#include "common/base/status_macros.h"
#include "common/text/loaders.h"

namespace membank {

absl::StatusOr<std::unique_ptr<Tokenizer>> LoadTokenizer(const std::string& path) {
  std::error_code ignored;
  if (std::filesystem::is_directory(path, ignored)) {
    const std::string inside = path + "/tokenizer.json";
    if (std::filesystem::exists(inside, ignored)) return LoadTokenizerJson(inside);
    return NotFound("{} has no tokenizer.json; supported are a tokenizer.json, a directory that holds one, and a GGUF file", path);
  }
  ASSIGN_OR_RETURN(const std::shared_ptr<MappedFile> file, MappedFile::Open(path));
  const absl::Span<const uint8_t> bytes = file->bytes();
  const std::string_view text(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  if (text.substr(0, 4) == "GGUF") return LoadTokenizerGguf(path);
  const size_t begin = text.find_first_not_of(" \t\r\n");
  if (begin != std::string_view::npos && text[begin] == '{') return LoadTokenizerJson(path);
  return Unimplemented("{} is no tokenizer that membank reads; supported are a tokenizer.json, a directory that holds one, and a GGUF file", path);
}

}  // namespace membank
