// The steps that change text before it is cut and encoded (Hugging Face's normalizers, and SentencePiece's rules).
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "common/text/bert_normalizer.h"
#include "common/text/charsmap.h"
#include "common/text/split_pattern.h"

namespace membank {

// Immutable; any thread. The text is valid UTF-8 before and after. The description decides a tokenizer's fingerprint.
struct NormalizerStep {
  std::string description;
  std::function<absl::Status(std::string& text)> apply;
};

absl::Status Normalize(const std::vector<NormalizerStep>& steps, std::string& text);

enum class UnicodeForm { kNfc, kNfd, kNfkc, kNfkd };
NormalizerStep ToUnicodeForm(UnicodeForm form);   // the descriptions are "NFC", ...
NormalizerStep ReplaceText(const std::string& from, const std::string& to);
NormalizerStep ReplacePattern(SplitPattern pattern, const std::string& to);
NormalizerStep PrependText(const std::string& prefix);   // to text that is not empty
NormalizerStep NormalizeBert(const BertRules& rules);
// Hugging Face's Precompiled.
NormalizerStep MapCharacters(std::shared_ptr<const Charsmap> map);

// What a SentencePiece model does to text (normalizer_spec): map characters (`map` may be null), squeeze white space, put a space before
// it, write spaces as U+2581. Text of nothing but white space becomes empty where it is squeezed.
struct SentencePieceRules {
  std::shared_ptr<const Charsmap> map;
  bool add_prefix = true;
  bool remove_extra_spaces = true;
};
NormalizerStep NormalizeSentencePiece(const SentencePieceRules& rules);

}  // namespace membank
