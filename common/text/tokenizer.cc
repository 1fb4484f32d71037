#include "common/text/tokenizer.h"

#include <filesystem>

#include "common/base/file.h"
#include "common/base/status_macros.h"
#include "common/text/loaders.h"

namespace membank {

namespace {

constexpr std::string_view kSupported =
    "supported are a tokenizer.json, a GGUF file, a SentencePiece .model file, and a directory that holds a tokenizer.json or a tokenizer.model";

// A ModelProto begins with its first piece: field 1, whose first field is the spelling. (Llama 3's tokenizer.model is a list of base64.)
bool IsSentencePiece(std::string_view text) { return text.size() > 2 && text[0] == '\x0a' && text.substr(0, 4).find('\x0a', 2) != std::string_view::npos; }

}  // namespace

absl::StatusOr<std::unique_ptr<Tokenizer>> LoadTokenizer(const std::string& path) {
  std::error_code ignored;
  if (std::filesystem::is_directory(path, ignored)) {
    for (const char* name : {"tokenizer.json", "tokenizer.model"}) {
      const std::string inside = fmt::format("{}/{}", path, name);
      if (std::filesystem::exists(inside, ignored)) return LoadTokenizer(inside);
    }
    return NotFound("{} has no tokenizer.json and no tokenizer.model; {}", path, kSupported);
  }
  ASSIGN_OR_RETURN(const std::shared_ptr<MappedFile> file, MappedFile::Open(path));
  const absl::Span<const uint8_t> bytes = file->bytes();
  const std::string_view text(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  if (text.substr(0, 4) == "GGUF") return LoadTokenizerGguf(path);
  const size_t begin = text.find_first_not_of(" \t\r\n");
  if (begin != std::string_view::npos && text[begin] == '{') return LoadTokenizerJson(path);
  if (IsSentencePiece(text)) return LoadTokenizerSentencePiece(path);
  return Unimplemented("{} is no tokenizer that membank reads; {}", path, kSupported);
}

}  // namespace membank
