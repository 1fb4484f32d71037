#include "common/text/bpe.h"

#include <utf8proc.h>

#include <algorithm>
#include <cstdlib>

#include "absl/container/flat_hash_map.h"
#include "common/base/status_macros.h"
#include "common/text/split_pattern.h"
#include "common/text/utf8.h"

namespace membank {

const char kGpt2Pattern[] = R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";
const char kDigitPattern[] = R"(\p{N})";
const char kDigitsPattern[] = R"(\p{N}+)";
const char kLlama3Pattern[] = R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
const char kQwen2Pattern[] = R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";

namespace {

// GPT-2's alphabet: printable bytes stand for themselves, the others for U+0100 and up, in order.
bool IsPrintable(uint32_t byte) { return (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || byte >= 174; }

std::vector<std::string> MakeByteAlphabet() {
  std::vector<std::string> alphabet(256);
  uint32_t next = 256;
  for (uint32_t byte = 0; byte < 256; ++byte) AppendUtf8(IsPrintable(byte) ? byte : next++, alphabet[byte]);
  return alphabet;
}

// The bytes that a token stands for; a spelling with characters outside the alphabet stands for itself.
std::string TokenBytes(const std::string& spelling, const TokenMap& byte_of) {
  std::string bytes;
  for (std::string_view rest = spelling; !rest.empty();) {
    const size_t length = NextUtf8(rest).length;
    const auto found = byte_of.find(rest.substr(0, length));
    if (found == byte_of.end()) return spelling;
    bytes += static_cast<char>(found->second);
    rest.remove_prefix(length);
  }
  return bytes;
}

struct Merge {
  int32_t rank;
  int32_t result;
};

uint64_t PairKey(int32_t left, int32_t right) { return static_cast<uint64_t>(left) << 32 | static_cast<uint32_t>(right); }

class BpeTokenizer : public Tokenizer {
 public:
  absl::Status Init(BpeDefinition definition, const std::string& source);

  absl::StatusOr<std::vector<int32_t>> Encode(std::string_view text, bool parse_special) const override;
  absl::StatusOr<std::string> Decode(absl::Span<const int32_t> ids, bool skip_special) const override;
  int32_t vocab_size() const override { return vocabulary_.size(); }
  int32_t eos_id() const override { return vocabulary_.eos_id(); }
  int32_t bos_id() const override { return vocabulary_.bos_id(); }
  bool IsSpecial(int32_t id) const override { return vocabulary_.IsSpecial(id); }
  absl::StatusOr<int32_t> TokenId(std::string_view token) const override { return vocabulary_.TokenId(token); }
  std::string Fingerprint() const override { return fingerprint_; }

 private:
  // One word: a list of symbols, merged in place. Kept between words of a call so that memory is reused.
  struct Word {
    struct Symbol {
      int32_t id, previous, next;   // positions; -1 at the ends; id -1: merged into its predecessor
    };
    struct Candidate {
      int32_t rank, position, left, right, result;
      bool operator<(const Candidate& other) const {   // the smallest rank, then the leftmost, is on top of the heap
        return rank != other.rank ? rank > other.rank : position > other.position;
      }
    };
    std::vector<Symbol> symbols;
    std::vector<Candidate> heap;
  };

  absl::Status InitMerges(const std::vector<std::pair<std::string, std::string>>& merges, const std::string& source);
  void MakeFingerprint(const BpeDefinition& definition);
  absl::Status EncodePlain(std::string_view text, std::vector<int32_t>& ids) const;
  void EncodeWord(std::string_view bytes, Word& word, std::vector<int32_t>& ids) const;
  void Consider(int32_t position, Word& word) const;

  Vocabulary vocabulary_;
  std::vector<SplitPattern> patterns_;
  absl::flat_hash_map<uint64_t, Merge> merges_;
  int32_t id_of_byte_[256];           // -1: the vocabulary lacks it, and text loses it, as in Hugging Face's tokenizers
  std::vector<std::string> bytes_;    // by id
  TokenMap id_of_word_;               // only with ignore_merges_
  bool nfc_ = false, ignore_merges_ = false;
  std::string fingerprint_;
};

absl::Status BpeTokenizer::Init(BpeDefinition definition, const std::string& source) {
  MakeFingerprint(definition);
  vocabulary_ = std::move(definition.vocabulary);
  nfc_ = definition.nfc;
  ignore_merges_ = definition.ignore_merges;
  for (const std::string& pattern : definition.split_patterns) {
    absl::StatusOr<SplitPattern> compiled = SplitPattern::Compile(pattern);
    if (!compiled.ok()) return Annotate(compiled.status(), source);
    patterns_.push_back(*std::move(compiled));
  }
  const std::vector<std::string> alphabet = MakeByteAlphabet();
  TokenMap byte_of;
  for (int32_t byte = 0; byte < 256; ++byte) {
    byte_of[alphabet[byte]] = byte;
    id_of_byte_[byte] = vocabulary_.Find(alphabet[byte]);
  }
  for (int32_t id = 0; id < vocabulary_.size(); ++id) {
    const std::string& spelling = vocabulary_.spelling(id);
    bytes_.push_back(vocabulary_.IsAdded(id) ? spelling : TokenBytes(spelling, byte_of));
    if (ignore_merges_ && !vocabulary_.IsAdded(id) && !spelling.empty()) id_of_word_.emplace(bytes_.back(), id);
  }
  return InitMerges(definition.merges, source);
}

absl::Status BpeTokenizer::InitMerges(const std::vector<std::pair<std::string, std::string>>& merges, const std::string& source) {
  merges_.reserve(merges.size());
  for (size_t rank = 0; rank < merges.size(); ++rank) {
    const auto& [left, right] = merges[rank];
    const int32_t left_id = vocabulary_.Find(left), right_id = vocabulary_.Find(right), result = vocabulary_.Find(left + right);
    if (left_id < 0 || right_id < 0 || result < 0) {
      return InvalidArgument("{}: merge {} joins '{}' and '{}', but '{}' is not in the vocabulary", source, rank, left, right,
                             left_id < 0 ? left : right_id < 0 ? right : left + right);
    }
    merges_[PairKey(left_id, right_id)] = {static_cast<int32_t>(rank), result};   // of equal merges the last counts, as in tokenizers
  }
  return absl::OkStatus();
}

void BpeTokenizer::MakeFingerprint(const BpeDefinition& definition) {
  FingerprintBuilder builder;
  builder.Add("byte-level BPE");
  builder.Add(definition.vocabulary);
  for (const auto& [left, right] : definition.merges) {
    builder.Add(left);
    builder.Add(right);
  }
  for (const std::string& pattern : definition.split_patterns) builder.Add(pattern);
  builder.Add(int64_t{definition.nfc} * 2 + definition.ignore_merges);
  fingerprint_ = builder.Finish();
}

absl::StatusOr<std::vector<int32_t>> BpeTokenizer::Encode(std::string_view text, bool parse_special) const {
  RETURN_IF_ERROR(CheckUtf8(text));
  std::vector<int32_t> ids;
  ids.reserve(text.size() / 3);
  for (const Vocabulary::Segment& segment : vocabulary_.Split(text, parse_special)) {
    if (segment.id >= 0) {
      ids.push_back(segment.id);
    } else {
      RETURN_IF_ERROR(EncodePlain(segment.text, ids));
    }
  }
  return ids;
}

absl::Status BpeTokenizer::EncodePlain(std::string_view text, std::vector<int32_t>& ids) const {
  std::unique_ptr<utf8proc_uint8_t, decltype(&std::free)> normalised(nullptr, std::free);
  if (nfc_) {
    utf8proc_uint8_t* out = nullptr;
    const utf8proc_ssize_t size = utf8proc_map(reinterpret_cast<const utf8proc_uint8_t*>(text.data()), static_cast<utf8proc_ssize_t>(text.size()),
                                               &out, static_cast<utf8proc_option_t>(UTF8PROC_STABLE | UTF8PROC_COMPOSE));
    if (size < 0) return Internal("normalising {} bytes to NFC: {}", text.size(), utf8proc_errmsg(size));
    normalised.reset(out);
    text = {reinterpret_cast<const char*>(out), static_cast<size_t>(size)};
  }
  std::vector<std::string_view> pieces = {text}, finer;
  for (const SplitPattern& pattern : patterns_) {
    finer.clear();
    for (std::string_view piece : pieces) RETURN_IF_ERROR(pattern.Split(piece, finer));
    pieces.swap(finer);
  }
  Word word;
  for (std::string_view piece : pieces) EncodeWord(piece, word, ids);
  return absl::OkStatus();
}

void BpeTokenizer::EncodeWord(std::string_view bytes, Word& word, std::vector<int32_t>& ids) const {
  if (ignore_merges_) {
    if (const auto found = id_of_word_.find(bytes); found != id_of_word_.end()) {
      ids.push_back(found->second);
      return;
    }
  }
  std::vector<Word::Symbol>& symbols = word.symbols;
  symbols.clear();
  for (char byte : bytes) {
    const int32_t id = id_of_byte_[static_cast<uint8_t>(byte)];
    if (id < 0) continue;
    const int32_t position = static_cast<int32_t>(symbols.size());
    symbols.push_back({id, position - 1, position + 1});
  }
  if (symbols.empty()) return;
  symbols.back().next = -1;

  word.heap.clear();
  for (int32_t i = 0; i + 1 < symbols.size(); ++i) Consider(i, word);
  while (!word.heap.empty()) {
    std::pop_heap(word.heap.begin(), word.heap.end());
    const Word::Candidate best = word.heap.back();
    word.heap.pop_back();
    Word::Symbol& left = symbols[best.position];
    if (left.id != best.left || left.next < 0 || symbols[left.next].id != best.right) continue;   // merged meanwhile
    Word::Symbol& right = symbols[left.next];
    left.id = best.result;
    left.next = right.next;
    right.id = -1;
    if (left.next >= 0) symbols[left.next].previous = best.position;
    if (left.previous >= 0) Consider(left.previous, word);
    Consider(best.position, word);
  }
  for (int32_t i = 0; i >= 0; i = symbols[i].next) ids.push_back(symbols[i].id);
}

// Puts the pair that begins at `position` on the heap when it can be merged.
void BpeTokenizer::Consider(int32_t position, Word& word) const {
  const Word::Symbol& left = word.symbols[position];
  if (left.next < 0) return;
  const int32_t right = word.symbols[left.next].id;
  const auto found = merges_.find(PairKey(left.id, right));
  if (found == merges_.end()) return;
  word.heap.push_back({found->second.rank, position, left.id, right, found->second.result});
  std::push_heap(word.heap.begin(), word.heap.end());
}

absl::StatusOr<std::string> BpeTokenizer::Decode(absl::Span<const int32_t> ids, bool skip_special) const {
  std::string text;
  for (int32_t id : ids) {
    RETURN_IF_ERROR(vocabulary_.CheckId(id));
    if (!skip_special || !vocabulary_.IsSpecial(id)) text += bytes_[id];
  }
  return text;
}

}  // namespace

absl::StatusOr<std::unique_ptr<Tokenizer>> MakeBpeTokenizer(BpeDefinition definition, const std::string& source) {
  auto tokenizer = std::make_unique<BpeTokenizer>();
  RETURN_IF_ERROR(tokenizer->Init(std::move(definition), source));
  return tokenizer;
}

}  // namespace membank
