#include "common/text/wordpiece.h"

#include <algorithm>

#include "common/base/status_macros.h"
#include "common/text/bert_normalizer.h"
#include "common/text/utf8.h"

namespace membank {
namespace {

// What Hugging Face's WordPiece decoder replaces, in this order.
constexpr std::pair<std::string_view, std::string_view> kCleanups[] = {
    {" .", "."}, {" ?", "?"}, {" !", "!"}, {" ,", ","}, {" ' ", "'"}, {" n't", "n't"}, {" 'm", "'m"}, {" do not", " don't"},
    {" 's", "'s"}, {" 've", "'ve"}, {" 're", "'re"}};

void ReplaceAll(std::string& text, std::string_view from, std::string_view to) {
  for (size_t at = text.find(from); at != std::string::npos; at = text.find(from, at + to.size())) text.replace(at, from.size(), to);
}

class WordPieceTokenizer : public Tokenizer {
 public:
  absl::Status Init(WordPieceDefinition definition, const std::string& source);

  absl::StatusOr<std::vector<int32_t>> Encode(std::string_view text, bool parse_special) const override;
  absl::StatusOr<std::string> Decode(absl::Span<const int32_t> ids, bool skip_special) const override;
  int32_t vocab_size() const override { return vocabulary().size(); }
  int32_t eos_id() const override { return vocabulary().eos_id(); }
  int32_t bos_id() const override { return vocabulary().bos_id(); }
  bool IsSpecial(int32_t id) const override { return vocabulary().IsSpecial(id); }
  absl::StatusOr<int32_t> TokenId(std::string_view token) const override { return vocabulary().TokenId(token); }
  std::string Fingerprint() const override { return fingerprint_; }

 private:
  const Vocabulary& vocabulary() const { return definition_.vocabulary; }
  void EncodeWord(std::string_view word, std::vector<int32_t>& ids) const;

  WordPieceDefinition definition_;
  BertRules rules_;
  int32_t unknown_ = -1;
  TokenMap continuing_;                   // pieces inside a word, without the prefix
  size_t longest_ = 0, longest_continuing_ = 0;   // bytes
  std::string fingerprint_;
};

absl::Status WordPieceTokenizer::Init(WordPieceDefinition definition, const std::string& source) {
  definition_ = std::move(definition);
  rules_ = {definition_.handle_chinese_chars, definition_.strip_accents, definition_.lowercase};
  unknown_ = vocabulary().Find(definition_.unknown);
  if (unknown_ < 0) return InvalidArgument("{}: the unknown token '{}' is not in the vocabulary", source, definition_.unknown);
  if (definition_.prefix.empty()) return Unimplemented("{}: WordPiece without a continuing_subword_prefix is not supported", source);
  for (int32_t id = 0; id < vocabulary().size(); ++id) {
    const std::string& spelling = vocabulary().spelling(id);
    longest_ = std::max(longest_, spelling.size());
    if (spelling.size() <= definition_.prefix.size() || spelling.compare(0, definition_.prefix.size(), definition_.prefix) != 0) continue;
    const auto [piece, inserted] = continuing_.emplace(spelling.substr(definition_.prefix.size()), id);
    longest_continuing_ = std::max(longest_continuing_, piece->first.size());
  }
  FingerprintBuilder builder;
  builder.Add("WordPiece");
  builder.Add(vocabulary());
  builder.Add(definition_.unknown);
  builder.Add(definition_.prefix);
  builder.Add(static_cast<int64_t>(definition_.max_word_characters));
  builder.Add(int64_t{rules_.handle_chinese_chars} * 4 + rules_.strip_accents * 2 + rules_.lowercase);
  fingerprint_ = builder.Finish();
  return absl::OkStatus();
}

absl::StatusOr<std::vector<int32_t>> WordPieceTokenizer::Encode(std::string_view text, bool parse_special) const {
  RETURN_IF_ERROR(CheckUtf8(text));
  std::vector<int32_t> ids;
  for (const Vocabulary::Segment& segment : vocabulary().Split(text, parse_special)) {
    if (segment.id >= 0) {
      ids.push_back(segment.id);
      continue;
    }
    ASSIGN_OR_RETURN(const std::string normalised, BertNormalize(segment.text, rules_));
    for (std::string_view word : BertWords(normalised)) EncodeWord(word, ids);
  }
  return ids;
}

void WordPieceTokenizer::EncodeWord(std::string_view word, std::vector<int32_t>& ids) const {
  const auto begins = [](char c) { return (static_cast<uint8_t>(c) & 0xc0) != 0x80; };
  const size_t first = ids.size();
  bool known = static_cast<size_t>(std::count_if(word.begin(), word.end(), begins)) <= definition_.max_word_characters;
  for (size_t at = 0; known && at < word.size();) {
    int32_t id = -1;
    size_t length = std::min(word.size() - at, at == 0 ? longest_ : longest_continuing_);
    for (; length > 0; --length) {
      if (at + length < word.size() && !begins(word[at + length])) continue;   // not at a character's end
      const std::string_view piece = word.substr(at, length);
      if (at == 0) {
        id = vocabulary().Find(piece);
      } else if (const auto found = continuing_.find(piece); found != continuing_.end()) {
        id = found->second;
      }
      if (id >= 0) break;
    }
    known = id >= 0;
    ids.push_back(id);
    at += length;
  }
  if (known) return;
  ids.resize(first);
  ids.push_back(unknown_);
}

absl::StatusOr<std::string> WordPieceTokenizer::Decode(absl::Span<const int32_t> ids, bool skip_special) const {
  std::string text;
  bool begun = false;
  for (int32_t id : ids) {
    RETURN_IF_ERROR(vocabulary().CheckId(id));
    if (skip_special && IsSpecial(id)) continue;
    std::string piece = vocabulary().spelling(id);
    if (begun && piece.compare(0, definition_.prefix.size(), definition_.prefix) == 0) {
      piece.erase(0, definition_.prefix.size());
    } else if (begun) {
      piece = fmt::format(" {}", piece);
    }
    begun = true;
    if (definition_.cleanup) {
      for (const auto& [from, to] : kCleanups) ReplaceAll(piece, from, to);
    }
    text += piece;
  }
  return text;
}

}  // namespace

absl::StatusOr<std::unique_ptr<Tokenizer>> MakeWordPieceTokenizer(WordPieceDefinition definition, const std::string& source) {
  auto tokenizer = std::make_unique<WordPieceTokenizer>();
  RETURN_IF_ERROR(tokenizer->Init(std::move(definition), source));
  return tokenizer;
}

}  // namespace membank
