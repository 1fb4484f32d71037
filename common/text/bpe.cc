#include "common/text/bpe.h"

#include "absl/container/flat_hash_map.h"
#include "common/base/status_macros.h"
#include "common/text/byte_tokens.h"
#include "common/text/merge_queue.h"
#include "common/text/pipeline.h"
#include "common/text/utf8.h"

namespace membank {

const char kGpt2Pattern[] = R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";
const char kDigitPattern[] = R"(\p{N})";
const char kDigitsPattern[] = R"(\p{N}+)";
const char kLlama3Pattern[] = R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
const char kQwen2Pattern[] = R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";

namespace {

uint64_t PairKey(int32_t left, int32_t right) { return static_cast<uint64_t>(left) << 32 | static_cast<uint32_t>(right); }

class BpeModel : public TokenModel {
 public:
  absl::Status Init(const BpeDefinition& definition, const std::string& source);
  absl::Status Encode(const std::vector<TextPiece>& pieces, std::vector<int32_t>& ids) const override;

 private:
  absl::Status InitMerges(const BpeDefinition& definition, const std::string& source);
  void SplitBytes(std::string_view piece, MergeQueue& word) const;
  void SplitCharacters(std::string_view piece, MergeQueue& word) const;
  const Merge* FindMerge(int32_t left, int32_t right) const {
    const auto found = merges_.find(PairKey(left, right));
    return found == merges_.end() ? nullptr : &found->second;
  }

  absl::flat_hash_map<uint64_t, Merge> merges_;
  std::array<int32_t, 256> id_of_byte_;   // of single bytes (byte_level_) or of "<0x0A>"; -1 where the vocabulary lacks it
  TokenMap id_of_character_;              // without byte_level_
  TokenMap id_of_word_;                   // with ignore_merges_
  bool byte_level_ = true, byte_fallback_ = false, fuse_unknown_ = false, ignore_merges_ = false;
  int32_t unknown_ = -1;
};

absl::Status BpeModel::Init(const BpeDefinition& definition, const std::string& source) {
  const Vocabulary& vocabulary = definition.vocabulary;
  byte_level_ = definition.byte_level;
  byte_fallback_ = definition.byte_fallback;
  fuse_unknown_ = definition.fuse_unknown;
  ignore_merges_ = definition.ignore_merges;
  unknown_ = definition.unknown;
  if (byte_level_) {
    for (size_t byte = 0; byte < 256; ++byte) id_of_byte_[byte] = vocabulary.Find(ByteAlphabet()[byte]);
  } else {
    id_of_byte_ = FindByteTokens(vocabulary);
  }
  for (int32_t id = 0; id < vocabulary.size(); ++id) {
    const std::string& spelling = vocabulary.spelling(id);
    if (spelling.empty()) continue;
    if (!byte_level_ && NextUtf8(spelling).length == spelling.size()) id_of_character_.emplace(spelling, id);
    if (ignore_merges_ && !(byte_level_ && vocabulary.IsAdded(id))) {
      id_of_word_.emplace(byte_level_ ? FromByteAlphabet(spelling) : spelling, id);
    }
  }
  return InitMerges(definition, source);
}

absl::Status BpeModel::InitMerges(const BpeDefinition& definition, const std::string& source) {
  const Vocabulary& vocabulary = definition.vocabulary;
  merges_.reserve(definition.merges.size());
  for (size_t rank = 0; rank < definition.merges.size(); ++rank) {
    const auto& [left, right] = definition.merges[rank];
    const int32_t left_id = vocabulary.Find(left), right_id = vocabulary.Find(right), result = vocabulary.Find(left + right);
    if (left_id < 0 || right_id < 0 || result < 0) {
      return InvalidArgument("{}: merge {} joins '{}' and '{}', but '{}' is not in the vocabulary", source, rank, left, right,
                             left_id < 0 ? left : right_id < 0 ? right : left + right);
    }
    merges_[PairKey(left_id, right_id)] = {static_cast<int32_t>(rank), result};   // of equal merges the last counts, as in tokenizers
  }
  return absl::OkStatus();
}

absl::Status BpeModel::Encode(const std::vector<TextPiece>& pieces, std::vector<int32_t>& ids) const {
  MergeQueue word;
  for (const TextPiece& piece : pieces) {
    if (const int32_t id = ignore_merges_ ? Lookup(id_of_word_, piece.text) : -1; id >= 0) {
      ids.push_back(id);
      continue;
    }
    word.Clear();
    if (byte_level_) {
      SplitBytes(piece.text, word);
    } else {
      SplitCharacters(piece.text, word);
    }
    word.Run([this](const MergeQueue::Symbol& left, const MergeQueue::Symbol& right) { return FindMerge(left.id, right.id); });
    word.ForEach([&ids](const MergeQueue::Symbol& symbol) { ids.push_back(symbol.id); });
  }
  return absl::OkStatus();
}

// A byte that the vocabulary lacks is lost, as in Hugging Face's tokenizers.
void BpeModel::SplitBytes(std::string_view piece, MergeQueue& word) const {
  for (size_t i = 0; i < piece.size(); ++i) {
    const int32_t id = id_of_byte_[static_cast<uint8_t>(piece[i])];
    if (id >= 0) word.Add(id, static_cast<int32_t>(i), 1);
  }
}

void BpeModel::SplitCharacters(std::string_view piece, MergeQueue& word) const {
  int32_t unknown_begin = -1;   // of unknown characters not yet added
  const auto add_unknown = [&](int32_t end) {
    if (unknown_begin >= 0) word.Add(unknown_, unknown_begin, end - unknown_begin);
    unknown_begin = -1;
  };
  std::vector<int32_t> bytes;
  for (size_t at = 0, length = 0; at < piece.size(); at += length) {
    const int32_t begin = static_cast<int32_t>(at);
    length = NextUtf8(piece.substr(at)).length;
    const std::string_view character = piece.substr(at, length);
    if (const int32_t id = Lookup(id_of_character_, character); id >= 0) {
      add_unknown(begin);
      word.Add(id, begin, static_cast<int32_t>(length));
      continue;
    }
    bytes.clear();
    if (byte_fallback_ && AppendByteTokens(character, id_of_byte_, bytes)) {
      for (size_t i = 0; i < bytes.size(); ++i) word.Add(bytes[i], begin + static_cast<int32_t>(i), 1);
      continue;
    }
    if (unknown_ < 0) continue;
    if (!fuse_unknown_) add_unknown(begin);
    if (unknown_begin < 0) unknown_begin = begin;
  }
  add_unknown(static_cast<int32_t>(piece.size()));
}

std::string MakeFingerprint(const BpeDefinition& definition) {
  FingerprintBuilder builder;
  builder.Add(definition.byte_level ? "byte-level BPE" : "BPE");
  builder.Add(definition.vocabulary);
  for (const auto& [left, right] : definition.merges) {
    builder.Add(left);
    builder.Add(right);
  }
  for (const PreTokenizerStep& step : definition.pre_tokenizer) builder.Add(step.description);
  const bool nfc = definition.normalizer.size() == 1 && definition.normalizer[0].description == "NFC";
  if (!nfc) {
    for (const NormalizerStep& step : definition.normalizer) builder.Add(step.description);
  }
  builder.Add(int64_t{nfc} * 2 + definition.ignore_merges);
  if (!definition.byte_level) {
    builder.Add(definition.unknown);
    builder.Add(int64_t{definition.byte_fallback} * 2 + definition.fuse_unknown);
  }
  return builder.Finish();
}

}  // namespace

absl::StatusOr<std::unique_ptr<Tokenizer>> MakeBpeTokenizer(BpeDefinition definition, const std::string& source) {
  auto model = std::make_unique<BpeModel>();
  RETURN_IF_ERROR(model->Init(definition, source));
  PipelineParts parts;
  parts.fingerprint = MakeFingerprint(definition);
  parts.decoder = definition.byte_level ? MakeDecoder(definition.vocabulary, {.byte_alphabet = true}) : std::move(definition.decoder);
  parts.vocabulary = std::move(definition.vocabulary);
  parts.normalizer = std::move(definition.normalizer);
  parts.pre_tokenizer = std::move(definition.pre_tokenizer);
  parts.model = std::move(model);
  return MakePipeline(std::move(parts));
}

}  // namespace membank
