#include "common/text/pipeline.h"

#include "common/base/status_macros.h"

namespace membank {
namespace {

class Pipeline : public Tokenizer {
 public:
  Pipeline(PipelineParts parts, std::vector<AddedToken> raw, std::vector<AddedToken> normalized)
      : parts_(std::move(parts)), raw_tokens_(std::move(raw)), normalized_tokens_(std::move(normalized)) {}

  absl::StatusOr<std::vector<int32_t>> Encode(std::string_view text, bool parse_special) const override;
  absl::StatusOr<std::string> Decode(absl::Span<const int32_t> ids, bool skip_special) const override;
  absl::StatusOr<std::string> DecodeNext(int32_t id, bool skip_special) const override;
  int32_t vocab_size() const override { return vocabulary().size(); }
  int32_t eos_id() const override { return vocabulary().eos_id(); }
  int32_t bos_id() const override { return vocabulary().bos_id(); }
  bool IsSpecial(int32_t id) const override { return vocabulary().IsSpecial(id); }
  absl::StatusOr<int32_t> TokenId(std::string_view token) const override { return vocabulary().TokenId(token); }
  std::string Fingerprint() const override { return parts_.fingerprint; }

 private:
  const Vocabulary& vocabulary() const { return parts_.vocabulary; }
  // Text without the tokens of raw_tokens_.
  absl::Status EncodeSegment(std::string_view text, bool begins_text, bool parse_special, std::vector<int32_t>& ids) const;

  const PipelineParts parts_;
  const AddedTokens raw_tokens_, normalized_tokens_;
};

absl::StatusOr<std::vector<int32_t>> Pipeline::Encode(std::string_view text, bool parse_special) const {
  RETURN_IF_ERROR(CheckUtf8(text));
  std::vector<int32_t> ids;
  ids.reserve(text.size() / 3);
  for (const AddedTokens::Segment& segment : raw_tokens_.Split(text, parse_special)) {
    if (segment.id >= 0) {
      ids.push_back(segment.id);
    } else {
      RETURN_IF_ERROR(EncodeSegment(segment.text, segment.text.data() == text.data(), parse_special, ids));
    }
  }
  return ids;
}

absl::Status Pipeline::EncodeSegment(std::string_view text, bool begins_text, bool parse_special, std::vector<int32_t>& ids) const {
  std::string normalized;
  if (!parts_.normalizer.empty()) {
    normalized = text;
    RETURN_IF_ERROR(Normalize(parts_.normalizer, normalized));
    text = normalized;
  }
  for (const AddedTokens::Segment& segment : normalized_tokens_.Split(text, parse_special)) {
    if (segment.id >= 0) {
      ids.push_back(segment.id);
      continue;
    }
    TextPieces text_pieces;
    text_pieces.pieces = {{segment.text, begins_text && segment.text.data() == text.data()}};
    for (const PreTokenizerStep& step : parts_.pre_tokenizer) RETURN_IF_ERROR(step.apply(text_pieces));
    RETURN_IF_ERROR(parts_.model->Encode(text_pieces.pieces, ids));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::string> Pipeline::Decode(absl::Span<const int32_t> ids, bool skip_special) const {
  const Decoder& decoder = parts_.decoder;
  std::string text;
  bool begun = false;
  for (int32_t id : ids) {
    RETURN_IF_ERROR(vocabulary().CheckId(id));
    if (skip_special && IsSpecial(id)) continue;
    text += begun || decoder.first.empty() ? decoder.next[id] : decoder.first[id];
    begun = true;
  }
  size_t spaces = 0;
  while (spaces < decoder.strip_spaces && spaces < text.size() && text[spaces] == ' ') ++spaces;
  text.erase(0, spaces);
  return text;
}

absl::StatusOr<std::string> Pipeline::DecodeNext(int32_t id, bool skip_special) const {
  RETURN_IF_ERROR(vocabulary().CheckId(id));
  return skip_special && IsSpecial(id) ? std::string() : parts_.decoder.next[id];
}

}  // namespace

std::unique_ptr<Tokenizer> MakePipeline(PipelineParts parts) {
  std::vector<AddedToken> raw, normalized;
  for (const AddedToken& token : parts.vocabulary.added()) (token.normalized ? normalized : raw).push_back(token);
  return std::make_unique<Pipeline>(std::move(parts), std::move(raw), std::move(normalized));
}

}  // namespace membank
