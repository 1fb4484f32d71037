// The file forms of a tokenizer. UNIMPLEMENTED names what is not supported and lists what is.
#pragma once

#include <memory>
#include <string>

#include "common/text/tokenizer.h"

namespace membank {

// Hugging Face's tokenizer.json; the ends of text are read from the tokenizer_config.json beside it, when there is one.
absl::StatusOr<std::unique_ptr<Tokenizer>> LoadTokenizerJson(const std::string& path);

absl::StatusOr<std::unique_ptr<Tokenizer>> LoadTokenizerGguf(const std::string& path);

// SentencePiece's .model file.
absl::StatusOr<std::unique_ptr<Tokenizer>> LoadTokenizerSentencePiece(const std::string& path);

}  // namespace membank
