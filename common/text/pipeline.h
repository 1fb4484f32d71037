// A tokenizer made of parts: added tokens are cut out, what is left is normalised, cut into pieces and encoded by a model.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "common/text/decoder.h"
#include "common/text/normalizer.h"
#include "common/text/pre_tokenizer.h"
#include "common/text/token_model.h"
#include "common/text/tokenizer.h"
#include "common/text/vocabulary.h"

namespace membank {

struct PipelineParts {
  Vocabulary vocabulary;
  std::vector<NormalizerStep> normalizer;
  std::vector<PreTokenizerStep> pre_tokenizer;
  std::unique_ptr<TokenModel> model;
  Decoder decoder;
  std::string fingerprint;
};

std::unique_ptr<Tokenizer> MakePipeline(PipelineParts parts);

}  // namespace membank
