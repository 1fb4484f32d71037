#include "common/text/tokenizer_hash.h"

#include "common/base/hash.h"

namespace membank {

std::string TokenizerHash(const Tokenizer& tokenizer) {
  Hasher hasher;
  hasher.Add(static_cast<uint64_t>(tokenizer.vocab_size())).Add(static_cast<uint64_t>(tokenizer.eos_id()));
  for (int32_t id = 0; id < tokenizer.vocab_size(); ++id) {
    const absl::StatusOr<std::string> text = tokenizer.Decode({id}, /*skip_special=*/false);
    hasher.Add(text.ok() ? *text : "(no text)");  // a hole in the vocabulary
  }
  return hasher.Hex();
}

}  // namespace membank
