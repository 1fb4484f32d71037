// The identity of a tokenizer: equal for equal vocabularies, whatever file they came from (tokenizer.json or GGUF). A packed corpus keeps
// it; the trainer compares it with the anchor's.
#pragma once

#include <string>

#include "common/text/tokenizer.h"

namespace membank {

// Tokenizer::Fingerprint(), which the trainer compares with; 32 hex digits.
std::string TokenizerHash(const Tokenizer& tokenizer);

}  // namespace membank
