#include "common/text/wordpiece.h"

#include <algorithm>

#include "common/base/status_macros.h"
#include "common/text/normalizer.h"
#include "common/text/pipeline.h"

namespace membank {
namespace {

// What Hugging Face's WordPiece decoder replaces, in this order.
constexpr std::pair<std::string_view, std::string_view> kCleanups[] = {
    {" .", "."}, {" ?", "?"}, {" !", "!"}, {" ,", ","}, {" ' ", "'"}, {" n't", "n't"}, {" 'm", "'m"}, {" do not", " don't"},
    {" 's", "'s"}, {" 've", "'ve"}, {" 're", "'re"}};

class WordPieceModel : public TokenModel {
 public:
  absl::Status Init(const WordPieceDefinition& definition, const std::string& source);
  absl::Status Encode(const std::vector<TextPiece>& pieces, std::vector<int32_t>& ids) const override {
    for (const TextPiece& piece : pieces) EncodeWord(piece.text, ids);
    return absl::OkStatus();
  }

 private:
  void EncodeWord(std::string_view word, std::vector<int32_t>& ids) const;

  TokenMap beginning_, continuing_;               // pieces that begin a word, and that continue one, without the prefix
  size_t longest_ = 0, longest_continuing_ = 0;   // bytes
  int32_t unknown_ = -1;
  size_t max_word_characters_ = 0;
};

absl::Status WordPieceModel::Init(const WordPieceDefinition& definition, const std::string& source) {
  const Vocabulary& vocabulary = definition.vocabulary;
  max_word_characters_ = definition.max_word_characters;
  unknown_ = vocabulary.Find(definition.unknown);
  if (unknown_ < 0) return InvalidArgument("{}: the unknown token '{}' is not in the vocabulary", source, definition.unknown);
  if (definition.prefix.empty()) return Unimplemented("{}: WordPiece without a continuing_subword_prefix is not supported", source);
  for (int32_t id = 0; id < vocabulary.size(); ++id) {
    const std::string& spelling = vocabulary.spelling(id);
    if (spelling.empty()) continue;
    beginning_.emplace(spelling, id);
    longest_ = std::max(longest_, spelling.size());
    if (spelling.size() <= definition.prefix.size() || spelling.compare(0, definition.prefix.size(), definition.prefix) != 0) continue;
    const auto [piece, inserted] = continuing_.emplace(spelling.substr(definition.prefix.size()), id);
    longest_continuing_ = std::max(longest_continuing_, piece->first.size());
  }
  return absl::OkStatus();
}

void WordPieceModel::EncodeWord(std::string_view word, std::vector<int32_t>& ids) const {
  const auto begins = [](char c) { return (static_cast<uint8_t>(c) & 0xc0) != 0x80; };
  const size_t first = ids.size();
  bool known = static_cast<size_t>(std::count_if(word.begin(), word.end(), begins)) <= max_word_characters_;
  for (size_t at = 0; known && at < word.size();) {
    int32_t id = -1;
    size_t length = std::min(word.size() - at, at == 0 ? longest_ : longest_continuing_);
    for (; length > 0; --length) {
      if (at + length < word.size() && !begins(word[at + length])) continue;   // not at a character's end
      id = Lookup(at == 0 ? beginning_ : continuing_, word.substr(at, length));
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

std::string Cleaned(std::string text, bool cleanup) {
  if (cleanup) {
    for (const auto& [from, to] : kCleanups) ReplaceAll(text, from, to);
  }
  return text;
}

Decoder MakeWordPieceDecoder(const WordPieceDefinition& definition) {
  Decoder decoder;
  for (int32_t id = 0; id < definition.vocabulary.size(); ++id) {
    const std::string& spelling = definition.vocabulary.spelling(id);
    const bool continues = spelling.compare(0, definition.prefix.size(), definition.prefix) == 0;
    decoder.first.push_back(Cleaned(spelling, definition.cleanup));
    decoder.next.push_back(Cleaned(continues ? spelling.substr(definition.prefix.size()) : fmt::format(" {}", spelling), definition.cleanup));
  }
  return decoder;
}

std::string MakeFingerprint(const WordPieceDefinition& definition) {
  FingerprintBuilder builder;
  builder.Add("WordPiece");
  builder.Add(definition.vocabulary);
  builder.Add(definition.unknown);
  builder.Add(definition.prefix);
  builder.Add(static_cast<int64_t>(definition.max_word_characters));
  builder.Add(int64_t{definition.rules.handle_chinese_chars} * 4 + definition.rules.strip_accents * 2 + definition.rules.lowercase);
  return builder.Finish();
}

}  // namespace

absl::StatusOr<std::unique_ptr<Tokenizer>> MakeWordPieceTokenizer(WordPieceDefinition definition, const std::string& source) {
  auto model = std::make_unique<WordPieceModel>();
  RETURN_IF_ERROR(model->Init(definition, source));
  PipelineParts parts;
  parts.fingerprint = MakeFingerprint(definition);
  parts.decoder = MakeWordPieceDecoder(definition);
  parts.normalizer = {NormalizeBert(definition.rules)};
  parts.pre_tokenizer = {SplitBertWords()};
  parts.model = std::move(model);
  parts.vocabulary = std::move(definition.vocabulary);
  return MakePipeline(std::move(parts));
}

}  // namespace membank
