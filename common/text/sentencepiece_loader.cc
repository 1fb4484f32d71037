#include <bit>
#include <functional>

#include "common/base/file.h"
#include "common/base/status_macros.h"
#include "common/text/loaders.h"
#include "common/text/proto_reader.h"
#include "common/text/sentencepiece.h"

// Field numbers are those of sentencepiece_model.proto.
namespace membank {
namespace {

using Visit = std::function<absl::Status(const ProtoField&)>;

absl::Status ForEachField(std::string_view message, const Visit& visit) {
  ProtoReader reader(message);
  while (!reader.done()) {
    ASSIGN_OR_RETURN(const ProtoField field, reader.Next());
    RETURN_IF_ERROR(visit(field));
  }
  return absl::OkStatus();
}

absl::StatusOr<SentencePiece> ReadPiece(std::string_view message) {
  SentencePiece piece;
  RETURN_IF_ERROR(ForEachField(message, [&](const ProtoField& field) -> absl::Status {
    if (field.number == 1) piece.spelling = field.bytes;
    if (field.number == 2) piece.score = std::bit_cast<float>(static_cast<uint32_t>(field.value));
    if (field.number != 3) return absl::OkStatus();
    if (field.value < SentencePiece::kNormal || field.value > SentencePiece::kByte) {
      return InvalidArgument("piece '{}' has the type {}; types are 1 to 6", piece.spelling, field.value);
    }
    piece.type = static_cast<SentencePiece::Type>(field.value);
    return absl::OkStatus();
  }));
  return piece;
}

absl::Status ReadTrainerSpec(std::string_view message, SentencePieceDefinition& definition) {
  definition.kind = SentencePieceDefinition::kUnigram;
  definition.bos_id = 1;
  definition.eos_id = 2;
  return ForEachField(message, [&](const ProtoField& field) -> absl::Status {
    const auto id = static_cast<int32_t>(field.value);
    if (field.number == 41) definition.bos_id = id;
    if (field.number == 42) definition.eos_id = id;
    if (field.number == 35) definition.byte_fallback = field.value != 0;
    if (field.number == 24 && field.value != 0) return Unimplemented("treat_whitespace_as_suffix is not supported");
    if (field.number != 3) return absl::OkStatus();
    if (field.value != 1 && field.value != 2) {
      return Unimplemented("model_type is {}; supported are 1 (unigram) and 2 (BPE)", field.value);
    }
    definition.kind = field.value == 1 ? SentencePieceDefinition::kUnigram : SentencePieceDefinition::kBpe;
    return absl::OkStatus();
  });
}

absl::Status ReadNormalizerSpec(std::string_view message, SentencePieceRules& rules) {
  return ForEachField(message, [&](const ProtoField& field) -> absl::Status {
    if (field.number == 2 && !field.bytes.empty()) {
      ASSIGN_OR_RETURN(Charsmap map, Charsmap::Parse(std::string(field.bytes)));
      rules.map = std::make_shared<const Charsmap>(std::move(map));
    }
    if (field.number == 3) rules.add_prefix = field.value != 0;
    if (field.number == 4) rules.remove_extra_spaces = field.value != 0;
    if (field.number == 5 && field.value == 0) return Unimplemented("a model without escape_whitespaces is not supported");
    return absl::OkStatus();
  });
}

absl::StatusOr<SentencePieceDefinition> ReadModel(std::string_view message) {
  SentencePieceDefinition definition;
  bool trained = false;
  RETURN_IF_ERROR(ForEachField(message, [&](const ProtoField& field) -> absl::Status {
    if (field.number == 2) {
      trained = true;
      return ReadTrainerSpec(field.bytes, definition);
    }
    if (field.number == 3) return ReadNormalizerSpec(field.bytes, definition.rules);
    if (field.number != 1) return absl::OkStatus();
    ASSIGN_OR_RETURN(SentencePiece piece, ReadPiece(field.bytes));
    definition.pieces.push_back(std::move(piece));
    return absl::OkStatus();
  }));
  if (!trained) return DataLoss("it has no trainer_spec");
  return definition;
}

}  // namespace

absl::StatusOr<std::unique_ptr<Tokenizer>> LoadTokenizerSentencePiece(const std::string& path) {
  ASSIGN_OR_RETURN(const std::string text, ReadFile(path));
  absl::StatusOr<SentencePieceDefinition> definition = ReadModel(text);
  if (!definition.ok()) return Annotate(definition.status(), fmt::format("{} (a SentencePiece model)", path));
  return MakeSentencePieceTokenizer(*std::move(definition), path);
}

}  // namespace membank
