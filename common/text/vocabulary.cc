#include "common/text/vocabulary.h"

#include <xxhash.h>

#include "common/base/status_macros.h"
#include "common/text/tokenizer.h"

namespace membank {
namespace {

constexpr int32_t kMaxId = 10'000'000;   // an order above the largest vocabularies; bounds memory when a file is damaged

}  // namespace

size_t TextHash::operator()(std::string_view text) const { return XXH3_64bits(text.data(), text.size()); }

absl::StatusOr<Vocabulary> Vocabulary::Make(std::vector<std::pair<std::string, int32_t>> tokens, std::vector<AddedToken> added,
                                            const std::string& source) {
  Vocabulary result;
  result.ids_.reserve(tokens.size());
  for (const AddedToken& token : added) {
    if (token.content.empty()) return InvalidArgument("{}: added token {} is empty", source, token.id);
    tokens.emplace_back(token.content, token.id);
  }
  for (auto& [spelling, id] : tokens) {
    if (id < 0 || id > kMaxId) return InvalidArgument("{}: token '{}' has the id {}; ids are 0 to {}", source, spelling, id, kMaxId);
    if (id >= result.size()) result.spellings_.resize(id + 1);
    const auto [known, inserted] = result.ids_.emplace(spelling, id);
    if (!inserted && known->second != id) {
      return InvalidArgument("{}: token '{}' has two ids, {} and {}", source, spelling, known->second, id);
    }
    if (inserted && !result.spellings_[id].empty()) {
      return InvalidArgument("{}: id {} belongs to '{}' and to '{}'", source, id, result.spellings_[id], spelling);
    }
    result.spellings_[id] = std::move(spelling);
  }
  result.kinds_.resize(result.spellings_.size(), kPlain);
  for (const AddedToken& token : added) result.kinds_[token.id] = token.special ? kSpecial : kAdded;
  result.added_ = std::move(added);
  return result;
}

int32_t Vocabulary::Find(std::string_view spelling) const { return Lookup(ids_, spelling); }

absl::StatusOr<int32_t> Vocabulary::TokenId(std::string_view token) const {
  const int32_t id = Find(token);
  if (id < 0) return NotFound("the tokenizer has no token '{}' among its {}", token, size());
  return id;
}

absl::Status Vocabulary::CheckId(int32_t id) const {
  if (id >= 0 && id < size()) return absl::OkStatus();
  return InvalidArgument("token id {} is out of range; the tokenizer's ids are 0 to {}", id, size() - 1);
}

absl::Status Vocabulary::SetEnds(int32_t declared_eos, int32_t declared_bos) {
  for (int32_t id : {declared_eos, declared_bos}) {
    if (id != -1) RETURN_IF_ERROR(CheckId(id));
  }
  eos_id_ = declared_eos;
  bos_id_ = declared_bos;
  for (std::string_view name : {"<|endoftext|>", "<|end_of_text|>", "</s>"}) {
    const int32_t id = Find(name);
    if (!IsSpecial(id)) continue;
    eos_id_ = id;
    break;
  }
  return absl::OkStatus();
}

absl::Status CheckUtf8(std::string_view text) {
  const size_t bad = FindInvalidUtf8(text);
  if (bad == std::string_view::npos) return absl::OkStatus();
  return InvalidArgument("the text is not UTF-8: byte 0x{:02x} at offset {} of {}; convert it first (iconv -t UTF-8)",
                         static_cast<uint8_t>(text[bad]), bad, text.size());
}

FingerprintBuilder::FingerprintBuilder() : state_(XXH3_createState()) { XXH3_128bits_reset(static_cast<XXH3_state_t*>(state_)); }

FingerprintBuilder::~FingerprintBuilder() { XXH3_freeState(static_cast<XXH3_state_t*>(state_)); }

void FingerprintBuilder::Add(int64_t number) { XXH3_128bits_update(static_cast<XXH3_state_t*>(state_), &number, sizeof(number)); }

void FingerprintBuilder::Add(std::string_view text) {
  Add(static_cast<int64_t>(text.size()));
  XXH3_128bits_update(static_cast<XXH3_state_t*>(state_), text.data(), text.size());
}

void FingerprintBuilder::Add(const Vocabulary& vocabulary) {
  Add(int64_t{vocabulary.size()});
  for (int32_t id = 0; id < vocabulary.size(); ++id) {
    Add(vocabulary.spelling(id));
    Add(int64_t{vocabulary.IsSpecial(id)} * 2 + vocabulary.IsAdded(id));
  }
  for (const AddedToken& token : vocabulary.added()) {
    if (token.single_word || token.lstrip || token.rstrip) Add(int64_t{token.id} * 8 + token.single_word * 4 + token.lstrip * 2 + token.rstrip);
  }
}

std::string FingerprintBuilder::Finish() const {
  const XXH128_hash_t hash = XXH3_128bits_digest(static_cast<const XXH3_state_t*>(state_));
  return fmt::format("{:016x}{:016x}", hash.high64, hash.low64);
}

}  // namespace membank
