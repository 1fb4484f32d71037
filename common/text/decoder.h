// What each id adds to a text. Immutable once filled; any thread.
#pragma once

#include <string>
#include <vector>

#include "common/text/vocabulary.h"

namespace membank {

struct Decoder {
  std::vector<std::string> next;    // by id: behind other tokens
  std::vector<std::string> first;   // by id: as the first token of a text; empty: as behind others
  size_t strip_spaces = 0;          // so many spaces that begin a text are left out, at most
};

// The steps of a tokenizer.json's decoder that work on one token.
struct DecoderRules {
  bool metaspace_to_space = false;       // U+2581 is a space
  bool drop_first_metaspaces = false;    // ... but none in the first token (Metaspace)
  bool byte_tokens = false;              // "<0x0A>" is a byte
  bool byte_alphabet = false;            // tokens that are not added are spelled in GPT-2's alphabet
  size_t strip_spaces = 0;
};
Decoder MakeDecoder(const Vocabulary& vocabulary, const DecoderRules& rules);

}  // namespace membank
