// Byte-pair encoding with a list of merges, as Hugging Face's tokenizers implements it: a piece's bytes (GPT-2's byte level) or characters
// (SentencePiece's kind, converted) are merged pair by pair in the order of the merges.
#pragma once

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "common/text/decoder.h"
#include "common/text/normalizer.h"
#include "common/text/pre_tokenizer.h"
#include "common/text/tokenizer.h"
#include "common/text/vocabulary.h"

namespace membank {

struct BpeDefinition {
  Vocabulary vocabulary;
  std::vector<std::pair<std::string, std::string>> merges;    // first is merged first
  std::vector<NormalizerStep> normalizer;
  std::vector<PreTokenizerStep> pre_tokenizer;
  bool ignore_merges = false;      // a piece that is a token is that token, whatever the merges give

  bool byte_level = true;          // plain tokens are spelled in the byte alphabet ("Ġthe"); the decoder is ByteLevel
  // Without byte_level:
  int32_t unknown = -1;            // id of characters that are no token; -1: they are left out
  bool byte_fallback = false;      // such characters become tokens "<0x0A>" where the vocabulary has them
  bool fuse_unknown = false;       // several in a row become one
  Decoder decoder;
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
