// BERT's WordPiece: clean, space out ideographs, strip accents, lower-case, split at spaces and punctuation, then the longest pieces first.
#pragma once

#include <memory>
#include <string>

#include "common/text/bert_normalizer.h"
#include "common/text/tokenizer.h"
#include "common/text/vocabulary.h"

namespace membank {

struct WordPieceDefinition {
  Vocabulary vocabulary;
  std::string unknown = "[UNK]";
  std::string prefix = "##";             // of a piece that continues a word
  size_t max_word_characters = 100;      // a longer word is unknown
  BertRules rules = {true, true, true};
  bool cleanup = true;                   // decoding removes the space before punctuation and in English contractions
};

absl::StatusOr<std::unique_ptr<Tokenizer>> MakeWordPieceTokenizer(WordPieceDefinition definition, const std::string& source);

}  // namespace membank
