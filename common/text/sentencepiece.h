// SentencePiece's models, as its library encodes: byte-pair encoding by scores, and unigram. From a .model file (ModelProto) or from the
// lists in a GGUF file of kind "llama".
//
// The library itself is not linked: Debian's libsentencepiece exports its own copy of protobuf, which would replace parts of the one that
// gRPC uses in the same process. The tests compare with it.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "common/text/normalizer.h"
#include "common/text/tokenizer.h"

namespace membank {

struct SentencePiece {
  enum Type { kNormal = 1, kUnknown = 2, kControl = 3, kUserDefined = 4, kUnused = 5, kByte = 6 };   // as in the ModelProto and in GGUF
  std::string spelling;
  float score = 0;
  Type type = kNormal;
};

struct SentencePieceDefinition {
  enum Kind { kUnigram, kBpe };
  Kind kind = kBpe;
  std::vector<SentencePiece> pieces;   // by id
  SentencePieceRules rules;
  bool byte_fallback = false;
  int32_t eos_id = -1, bos_id = -1;    // declared; out of range: none
  int32_t unknown_id = -1;             // -1: the piece of that type
};

// Control pieces and the unknown one become special tokens, user-defined ones added tokens that are found in normalised text. INVALID_ARGUMENT names `source`.
absl::StatusOr<std::unique_ptr<Tokenizer>> MakeSentencePieceTokenizer(SentencePieceDefinition definition, const std::string& source);

}  // namespace membank
