// Reads the steps of a tokenizer.json: normalizer, pre_tokenizer, decoder. UNIMPLEMENTED names a step that membank lacks, with its place, and
// lists those that it has. Pure functions.
#pragma once

#include <vector>

#include "common/text/decoder.h"
#include "common/text/json_part.h"
#include "common/text/normalizer.h"
#include "common/text/pre_tokenizer.h"

namespace membank {

absl::StatusOr<std::vector<NormalizerStep>> ReadNormalizer(const JsonPart& part);

struct PreTokenizerParts {
  std::vector<PreTokenizerStep> steps;
  bool byte_level = false;   // the last step maps bytes to GPT-2's alphabet
};
absl::StatusOr<PreTokenizerParts> ReadPreTokenizer(const JsonPart& part);

absl::StatusOr<DecoderRules> ReadDecoder(const JsonPart& part);

}  // namespace membank
