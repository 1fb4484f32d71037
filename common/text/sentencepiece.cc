#include "common/text/sentencepiece.h"

#include <algorithm>
#include <bit>
#include <limits>
#include <map>

#include "common/base/status_macros.h"
#include "common/text/byte_tokens.h"
#include "common/text/merge_queue.h"
#include "common/text/pipeline.h"
#include "common/text/unigram.h"
#include "common/text/utf8.h"

namespace membank {
namespace {

// Two neighbours are merged when their text together is a piece, the pieces with the greatest scores first.
class SentencePieceBpe : public TokenModel {
 public:
  SentencePieceBpe(const SentencePieceDefinition& definition, const Vocabulary& vocabulary, int32_t unknown);
  absl::Status Encode(const std::vector<TextPiece>& pieces, std::vector<int32_t>& ids) const override;

 private:
  // An unused piece is taken apart again into what it was merged from: the length of the left part by piece.
  using Merged = std::map<std::string_view, int32_t>;
  void Append(std::string_view symbol, const Merged& merged, std::vector<int32_t>& ids) const;

  TokenMap index_;                 // into merges_ by spelling
  std::vector<Merge> merges_;
  std::vector<bool> unused_;       // by id
  std::array<int32_t, 256> byte_tokens_;
  int32_t unknown_;
  bool byte_fallback_;
};

SentencePieceBpe::SentencePieceBpe(const SentencePieceDefinition& definition, const Vocabulary& vocabulary, int32_t unknown)
    : unused_(definition.pieces.size()), byte_tokens_(FindByteTokens(vocabulary)), unknown_(unknown), byte_fallback_(definition.byte_fallback) {
  std::vector<float> scores;
  for (const SentencePiece& piece : definition.pieces) scores.push_back(piece.score);
  std::sort(scores.begin(), scores.end(), std::greater<float>());
  for (size_t id = 0; id < definition.pieces.size(); ++id) {
    const SentencePiece& piece = definition.pieces[id];
    unused_[id] = piece.type == SentencePiece::kUnused;
    if (piece.type != SentencePiece::kNormal && piece.type != SentencePiece::kUserDefined && piece.type != SentencePiece::kUnused) continue;
    index_.emplace(piece.spelling, static_cast<int32_t>(merges_.size()));
    const auto rank = std::lower_bound(scores.begin(), scores.end(), piece.score, std::greater<float>()) - scores.begin();
    merges_.push_back({static_cast<int32_t>(rank), static_cast<int32_t>(id)});
  }
}

absl::Status SentencePieceBpe::Encode(const std::vector<TextPiece>& pieces, std::vector<int32_t>& ids) const {
  MergeQueue word;
  Merged merged;
  for (const TextPiece& piece : pieces) {
    const std::string_view text = piece.text;
    word.Clear();
    merged.clear();
    for (size_t at = 0, length = 0; at < text.size(); at += length) {
      length = NextUtf8(text.substr(at)).length;
      word.Add(-1, static_cast<int32_t>(at), static_cast<int32_t>(length));
    }
    word.Run([&](const MergeQueue::Symbol& left, const MergeQueue::Symbol& right) -> const Merge* {
      const std::string_view whole = text.substr(left.begin, left.length + right.length);
      const int32_t index = Lookup(index_, whole);
      if (index < 0) return nullptr;
      if (unused_[merges_[index].result]) merged[whole] = left.length;
      return &merges_[index];
    });
    const size_t first = ids.size();
    word.ForEach([&](const MergeQueue::Symbol& symbol) {
      const size_t before = ids.size();
      Append(text.substr(symbol.begin, symbol.length), merged, ids);
      // Unknown characters in a row are one token.
      if (before > first && ids.back() == unknown_ && ids[before - 1] == unknown_) ids.pop_back();
    });
  }
  return absl::OkStatus();
}

void SentencePieceBpe::Append(std::string_view symbol, const Merged& merged, std::vector<int32_t>& ids) const {
  const int32_t index = Lookup(index_, symbol);
  if (index < 0) {
    if (!byte_fallback_ || !AppendByteTokens(symbol, byte_tokens_, ids)) ids.push_back(unknown_);
    return;
  }
  const int32_t id = merges_[index].result;
  const auto parts = unused_[id] ? merged.find(symbol) : merged.end();
  if (parts == merged.end()) {
    ids.push_back(id);
    return;
  }
  Append(symbol.substr(0, parts->second), merged, ids);
  Append(symbol.substr(parts->second), merged, ids);
}

std::unique_ptr<TokenModel> MakeUnigram(const SentencePieceDefinition& definition, const Vocabulary& vocabulary, int32_t unknown) {
  UnigramDefinition unigram;
  unigram.unknown = unknown;
  unigram.byte_fallback = definition.byte_fallback;
  unigram.sentencepiece = true;
  unigram.lowest_score = std::numeric_limits<float>::max();
  for (size_t id = 0; id < definition.pieces.size(); ++id) {
    const SentencePiece& piece = definition.pieces[id];
    if (piece.type != SentencePiece::kNormal) continue;
    unigram.tokens.push_back({piece.spelling, static_cast<int32_t>(id), piece.score});
    unigram.lowest_score = std::min(unigram.lowest_score, double{piece.score});
  }
  return MakeUnigramModel(unigram, vocabulary);
}

std::string MakeFingerprint(const SentencePieceDefinition& definition, const Vocabulary& vocabulary, const NormalizerStep& normalizer) {
  FingerprintBuilder builder;
  builder.Add(definition.kind == SentencePieceDefinition::kBpe ? "SentencePiece BPE" : "SentencePiece unigram");
  builder.Add(vocabulary);
  for (const SentencePiece& piece : definition.pieces) builder.Add(int64_t{piece.type} << 32 | std::bit_cast<uint32_t>(piece.score));
  builder.Add(normalizer.description);
  builder.Add(int64_t{definition.byte_fallback});
  return builder.Finish();
}

}  // namespace

absl::StatusOr<std::unique_ptr<Tokenizer>> MakeSentencePieceTokenizer(SentencePieceDefinition definition, const std::string& source) {
  std::vector<std::pair<std::string, int32_t>> tokens;
  std::vector<AddedToken> added;
  int32_t unknown = definition.unknown_id;
  for (size_t i = 0; i < definition.pieces.size(); ++i) {
    const SentencePiece& piece = definition.pieces[i];
    const int32_t id = static_cast<int32_t>(i);
    if (piece.spelling.empty()) return InvalidArgument("{}: piece {} is empty", source, id);
    if (FindInvalidUtf8(piece.spelling) != std::string::npos) return InvalidArgument("{}: piece {} is not UTF-8", source, id);
    if (piece.score != piece.score) return InvalidArgument("{}: the score of piece {} '{}' is not a number", source, id, piece.spelling);
    if (piece.type == SentencePiece::kUnknown && unknown < 0) unknown = id;
    if (piece.type == SentencePiece::kControl || piece.type == SentencePiece::kUnknown) {
      added.push_back({.id = id, .content = piece.spelling, .special = true});
    } else if (piece.type == SentencePiece::kUserDefined) {
      std::string pattern = piece.spelling;
      ReplaceAll(pattern, " ", kMetaspace);
      added.push_back({.id = id, .content = piece.spelling, .normalized = true, .pattern = std::move(pattern)});
    } else {
      tokens.emplace_back(piece.spelling, id);
    }
  }
  if (unknown < 0 || unknown >= static_cast<int32_t>(definition.pieces.size())) {
    return InvalidArgument("{}: the unknown piece is {}, not one of the {} pieces", source, unknown, definition.pieces.size());
  }

  PipelineParts parts;
  ASSIGN_OR_RETURN(parts.vocabulary, Vocabulary::Make(std::move(tokens), std::move(added), source));
  const auto end = [&](int32_t id) { return id >= 0 && id < parts.vocabulary.size() ? id : -1; };
  RETURN_IF_ERROR(parts.vocabulary.SetEnds(end(definition.eos_id), end(definition.bos_id)));
  parts.normalizer = {NormalizeSentencePiece(definition.rules)};
  parts.fingerprint = MakeFingerprint(definition, parts.vocabulary, parts.normalizer[0]);
  if (definition.kind == SentencePieceDefinition::kBpe) {
    parts.model = std::make_unique<SentencePieceBpe>(definition, parts.vocabulary, unknown);
  } else {
    parts.model = MakeUnigram(definition, parts.vocabulary, unknown);
  }
  const size_t strip = definition.rules.remove_extra_spaces ? SIZE_MAX : definition.rules.add_prefix ? 1 : 0;
  parts.decoder = MakeDecoder(parts.vocabulary, {.metaspace_to_space = true, .byte_tokens = true, .strip_spaces = strip});
  return MakePipeline(std::move(parts));
}

}  // namespace membank
