// The unigram model (Kudo 2018): of all ways to cut a piece into tokens the one with the greatest sum of scores, as Hugging Face's
// tokenizers and SentencePiece compute it.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "common/text/token_model.h"
#include "common/text/vocabulary.h"

namespace membank {

struct UnigramToken {
  std::string spelling;
  int32_t id = 0;
  double score = 0;   // log-probability
};

struct UnigramDefinition {
  std::vector<UnigramToken> tokens;   // that a piece may be cut into
  double lowest_score = 0;            // an unknown character costs 10 more
  int32_t unknown = 0;                // id of characters that are no token; several in a row become one
  bool byte_fallback = false;         // unknown characters become tokens "<0x0A>" where the vocabulary has them
  bool sentencepiece = false;         // sums rounded to float, as SentencePiece keeps them; Hugging Face keeps doubles
};

std::unique_ptr<TokenModel> MakeUnigramModel(const UnigramDefinition& definition, const Vocabulary& vocabulary);

}  // namespace membank
