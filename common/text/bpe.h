// Byte-level byte-pair encoding as GPT-2 introduced it and Hugging Face's tokenizers implements it: text is cut into words by patterns,
// a word's bytes are merged pair by pair in the order of the merges.
#pragma once

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "common/text/tokenizer.h"
#include "common/text/vocabulary.h"

namespace membank {

struct BpeDefinition {
  Vocabulary vocabulary;                                      // plain tokens spelled in the byte alphabet ("Ġthe")
  std::vector<std::pair<std::string, std::string>> merges;    // first is merged first
  std::vector<std::string> split_patterns;                    // applied one after the other to the pieces of the one before
  bool nfc = false;                                           // normalise text to NFC first
  bool ignore_merges = false;                                 // a word that is a token is that token, whatever the merges give
};

// The patterns that tokenizer.json calls ByteLevel and Digits.
extern const char kGpt2Pattern[];
extern const char kDigitPattern[];    // each digit alone
extern const char kDigitsPattern[];   // runs of digits
// Those of Llama 3 and Qwen2.
extern const char kLlama3Pattern[];
extern const char kQwen2Pattern[];

// INVALID_ARGUMENT names `source` and the merge whose parts or result are no tokens.
absl::StatusOr<std::unique_ptr<Tokenizer>> MakeBpeTokenizer(BpeDefinition definition, const std::string& source);

}  // namespace membank
