// What every kind of tokenizer shares: the table of tokens by spelling and by id, which of them are added and special, end and begin of
// text, the fingerprint. Immutable after loading; any thread.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "common/text/added_tokens.h"
#include "common/text/text_map.h"

namespace membank {

class Vocabulary {
 public:
  Vocabulary() = default;
  // `source` names the file in errors. Each id and each spelling is used once; ids without a token are allowed.
  static absl::StatusOr<Vocabulary> Make(std::vector<std::pair<std::string, int32_t>> tokens, std::vector<AddedToken> added,
                                         const std::string& source);

  int32_t size() const { return static_cast<int32_t>(spellings_.size()); }
  int32_t Find(std::string_view spelling) const;   // -1 when absent
  absl::StatusOr<int32_t> TokenId(std::string_view token) const;
  absl::Status CheckId(int32_t id) const;
  const std::string& spelling(int32_t id) const { return spellings_[id]; }
  const std::vector<AddedToken>& added() const { return added_; }
  bool IsSpecial(int32_t id) const { return id >= 0 && id < size() && kinds_[id] == kSpecial; }
  bool IsAdded(int32_t id) const { return kinds_[id] != kPlain; }

  int32_t eos_id() const { return eos_id_; }
  int32_t bos_id() const { return bos_id_; }
  // The end of text is found by name first (see LoadTokenizer); -1 where nothing is declared.
  absl::Status SetEnds(int32_t declared_eos, int32_t declared_bos);

 private:
  enum Kind : uint8_t { kPlain, kAdded, kSpecial };

  TokenMap ids_;
  std::vector<std::string> spellings_;
  std::vector<Kind> kinds_;
  std::vector<AddedToken> added_;
  int32_t eos_id_ = -1, bos_id_ = -1;
};

// INVALID_ARGUMENT names the offset of the first bad byte.
absl::Status CheckUtf8(std::string_view text);

// XXH3-128 of strings and numbers, each framed by its length.
class FingerprintBuilder {
 public:
  FingerprintBuilder();
  ~FingerprintBuilder();
  FingerprintBuilder(const FingerprintBuilder&) = delete;
  FingerprintBuilder& operator=(const FingerprintBuilder&) = delete;

  void Add(std::string_view text);
  void Add(int64_t number);
  void Add(const Vocabulary& vocabulary);
  std::string Finish() const;   // 32 hex digits

 private:
  void* state_;
};

}  // namespace membank
