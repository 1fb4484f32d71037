#include "common/text/tokenizer_hash.h"

namespace membank {

std::string TokenizerHash(const Tokenizer& tokenizer) { return tokenizer.Fingerprint(); }

}  // namespace membank
