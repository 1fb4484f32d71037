#include "common/text/unigram.h"

#include <algorithm>
#include <cmath>

#include "common/text/byte_tokens.h"
#include "common/text/prefix_trie.h"
#include "common/text/utf8.h"

namespace membank {
namespace {

constexpr double kUnknownPenalty = 10;
constexpr double kRecentre = 100'000;   // SentencePiece 0.2 takes sums back to zero beyond it, where floats become coarse

class UnigramModel : public TokenModel {
 public:
  UnigramModel(const UnigramDefinition& definition, const Vocabulary& vocabulary);
  absl::Status Encode(const std::vector<TextPiece>& pieces, std::vector<int32_t>& ids) const override;

 private:
  // The best way to cut the text up to some place: the token that ends there.
  struct Best {
    int32_t begin = -1;   // -1: no way leads there
    int32_t id = -1;
    double score = 0;
  };
  void FindBest(std::string_view text, std::vector<Best>& best) const;
  void AppendUnknown(std::string_view text, std::vector<int32_t>& ids) const;

  PrefixTrie trie_;
  TokenMap ids_;                 // of the tokens
  std::vector<double> scores_;   // by id
  std::array<int32_t, 256> byte_tokens_;
  double unknown_score_;
  int32_t unknown_;
  bool byte_fallback_, sentencepiece_;
};

UnigramModel::UnigramModel(const UnigramDefinition& definition, const Vocabulary& vocabulary)
    : scores_(static_cast<size_t>(vocabulary.size())), byte_tokens_(FindByteTokens(vocabulary)),
      unknown_score_(definition.lowest_score - kUnknownPenalty), unknown_(definition.unknown), byte_fallback_(definition.byte_fallback),
      sentencepiece_(definition.sentencepiece) {
  for (const UnigramToken& token : definition.tokens) {
    trie_.Insert(token.spelling, token.id);
    ids_[token.spelling] = token.id;
    scores_[token.id] = token.score;
  }
}

absl::Status UnigramModel::Encode(const std::vector<TextPiece>& pieces, std::vector<int32_t>& ids) const {
  std::vector<Best> best;
  std::vector<std::pair<int32_t, int32_t>> ends;   // of the tokens on the best way, the last first, with their ids
  for (const TextPiece& piece : pieces) {
    FindBest(piece.text, best);
    ends.clear();
    for (int32_t end = static_cast<int32_t>(piece.text.size()); end > 0; end = best[end].begin) {
      if (best[end].id == unknown_ && !ends.empty() && ends.back().second == unknown_) continue;   // grows the unknown that follows
      ends.emplace_back(end, best[end].id);
    }
    int32_t begin = 0;
    for (auto end = ends.rbegin(); end != ends.rend(); ++end) {
      if (end->second == unknown_) {
        AppendUnknown(piece.text.substr(begin, end->first - begin), ids);
      } else {
        ids.push_back(end->second);
      }
      begin = end->first;
    }
  }
  return absl::OkStatus();
}

void UnigramModel::FindBest(std::string_view text, std::vector<Best>& best) const {
  best.assign(text.size() + 1, Best());
  size_t last = 0;   // the last place that some way leads to
  for (size_t at = 0, length = 0; at < text.size(); at += length) {
    length = NextUtf8(text.substr(at)).length;
    if (sentencepiece_ && std::abs(best[at].score) > kRecentre) {
      const double here = best[at].score;
      for (size_t i = at; i <= last; ++i) {
        if (best[i].begin >= 0) best[i].score = static_cast<float>(best[i].score - here);
      }
    }
    const double here = best[at].score;
    const auto offer = [&](size_t size, int32_t id, double score) {
      last = std::max(last, at + size);
      Best& end = best[at + size];
      const double sum = sentencepiece_ ? static_cast<float>(score + here) : score + here;
      if (end.begin < 0 || sum > end.score) end = {static_cast<int32_t>(at), id, sum};
    };
    bool single = false;
    trie_.ForEachPrefix(text.substr(at), [&](size_t size, int32_t id) {
      offer(size, id, scores_[id]);
      single |= size == length;
    });
    if (!single) offer(length, unknown_, unknown_score_);
  }
}

void UnigramModel::AppendUnknown(std::string_view text, std::vector<int32_t>& ids) const {
  if (const int32_t id = Lookup(ids_, text); id >= 0) {   // the spelling of the unknown token itself
    ids.push_back(id);
  } else if (!byte_fallback_ || !AppendByteTokens(text, byte_tokens_, ids)) {
    ids.push_back(unknown_);
  }
}

}  // namespace

std::unique_ptr<TokenModel> MakeUnigramModel(const UnigramDefinition& definition, const Vocabulary& vocabulary) {
  return std::make_unique<UnigramModel>(definition, vocabulary);
}

}  // namespace membank
