#include <algorithm>
#include <filesystem>

#include "common/base/file.h"
#include "common/base/json.h"
#include "common/base/status_macros.h"
#include "common/text/bpe.h"
#include "common/text/loaders.h"
#include "common/text/wordpiece.h"
#include "nlohmann/json.hpp"

namespace membank {
namespace {

using Json = nlohmann::json;

absl::StatusOr<Json> ReadJson(const std::string& path) {
  ASSIGN_OR_RETURN(const std::string text, ReadFile(path));
  return ParseJsonObject(text, path);
}

// A part of a JSON object with its place in the file, for errors. A member that is absent or null takes its default.
class Part {
 public:
  Part(const Json& json, std::string place) : json_(json), place_(std::move(place)) {}

  const Json& json() const { return json_; }
  const std::string& place() const { return place_; }
  bool Has(const char* key) const { return json_.is_object() && json_.contains(key) && !json_[key].is_null(); }
  Part operator[](const char* key) const {
    static const Json null;
    return {Has(key) ? json_[key] : null, place_ + "." + key};
  }

  absl::StatusOr<bool> Bool(const char* key, bool absent) const {
    if (!Has(key)) return absent;
    if (json_[key].is_boolean()) return json_[key].get<bool>();
    return InvalidArgument("{}.{} is not true or false", place_, key);
  }
  absl::StatusOr<std::string> String(const char* key, const std::string& absent) const {
    if (!Has(key)) return absent;
    if (json_[key].is_string()) return json_[key].get<std::string>();
    return InvalidArgument("{}.{} is not a string", place_, key);
  }
  absl::StatusOr<int64_t> Int(const char* key, int64_t absent) const {
    if (!Has(key)) return absent;
    if (json_[key].is_number_integer()) return json_[key].get<int64_t>();
    return InvalidArgument("{}.{} is not a whole number", place_, key);
  }
  // For what membank supports in one form only: `key` must be absent, null or `only`.
  absl::Status Require(const char* key, const Json& only) const {
    if (!Has(key) || json_[key] == only) return absl::OkStatus();
    return Unimplemented("{}.{} is {}; supported is only {}", place_, key, json_[key].dump(-1, ' ', true, Json::error_handler_t::replace),
                         only.dump());
  }

 private:
  const Json& json_;
  std::string place_;
};

absl::StatusOr<std::vector<AddedToken>> ReadAddedTokens(const Part& file) {
  std::vector<AddedToken> added;
  for (const Json& json : file["added_tokens"].json()) {
    const Part token(json, fmt::format("{}[{}]", file["added_tokens"].place(), added.size()));
    for (const char* key : {"single_word", "lstrip", "rstrip"}) RETURN_IF_ERROR(token.Require(key, false));
    ASSIGN_OR_RETURN(const int64_t id, token.Int("id", -1));
    ASSIGN_OR_RETURN(std::string content, token.String("content", ""));
    ASSIGN_OR_RETURN(const bool special, token.Bool("special", false));
    added.push_back({static_cast<int32_t>(std::clamp<int64_t>(id, -1, INT32_MAX)), std::move(content), special});
  }
  return added;
}

absl::StatusOr<Vocabulary> ReadVocabulary(const Part& file) {
  const Part vocab = file["model"]["vocab"];
  if (!vocab.json().is_object()) return InvalidArgument("{} is not an object of tokens", vocab.place());
  ASSIGN_OR_RETURN(std::vector<AddedToken> added, ReadAddedTokens(file));
  std::vector<std::pair<std::string, int32_t>> tokens;
  for (const auto& [spelling, id] : vocab.json().items()) {
    if (!id.is_number_integer()) return InvalidArgument("{}: the id of '{}' is not a whole number", vocab.place(), spelling);
    tokens.emplace_back(spelling, static_cast<int32_t>(std::clamp<int64_t>(id.get<int64_t>(), -1, INT32_MAX)));
  }
  return Vocabulary::Make(std::move(tokens), std::move(added), vocab.place());
}

absl::StatusOr<std::vector<std::pair<std::string, std::string>>> ReadMerges(const Part& merges) {
  std::vector<std::pair<std::string, std::string>> result;
  if (!merges.json().is_array()) return InvalidArgument("{} is not a list", merges.place());
  for (const Json& merge : merges.json()) {
    if (merge.is_array() && merge.size() == 2 && merge[0].is_string() && merge[1].is_string()) {
      result.emplace_back(merge[0].get<std::string>(), merge[1].get<std::string>());
      continue;
    }
    const std::string text = merge.is_string() ? merge.get<std::string>() : "";
    const size_t space = text.find(' ', 1);
    if (space == std::string::npos) return InvalidArgument("{}[{}] is not two tokens", merges.place(), result.size());
    result.emplace_back(text.substr(0, space), text.substr(space + 1));
  }
  return result;
}

// Appends the split patterns of a pre-tokenizer; `byte_level` is set when one of them maps bytes to the alphabet.
absl::Status ReadPreTokenizer(const Part& part, std::vector<std::string>& patterns, bool& byte_level) {
  ASSIGN_OR_RETURN(const std::string type, part.String("type", "none"));
  if (byte_level) return Unimplemented("{}: '{}' after ByteLevel is not supported", part.place(), type);
  if (type == "Sequence") {
    for (const Json& json : part["pretokenizers"].json()) RETURN_IF_ERROR(ReadPreTokenizer({json, part.place()}, patterns, byte_level));
    return absl::OkStatus();
  }
  if (type == "ByteLevel") {
    RETURN_IF_ERROR(part.Require("add_prefix_space", false));
    ASSIGN_OR_RETURN(const bool use_regex, part.Bool("use_regex", true));
    if (use_regex) patterns.push_back(kGpt2Pattern);
    byte_level = true;
    return absl::OkStatus();
  }
  if (type == "Digits") {
    ASSIGN_OR_RETURN(const bool individual, part.Bool("individual_digits", false));
    patterns.push_back(individual ? kDigitPattern : kDigitsPattern);
    return absl::OkStatus();
  }
  if (type == "Split") {
    RETURN_IF_ERROR(part.Require("behavior", "Isolated"));
    RETURN_IF_ERROR(part.Require("invert", false));
    ASSIGN_OR_RETURN(const std::string pattern, part["pattern"].String("Regex", ""));
    if (pattern.empty()) return Unimplemented("{}: Split without a Regex is not supported", part.place());
    patterns.push_back(pattern);
    return absl::OkStatus();
  }
  return Unimplemented("{} is '{}'; supported for BPE are ByteLevel, Digits, Split and Sequence of these", part.place(), type);
}

absl::StatusOr<std::unique_ptr<Tokenizer>> ReadBpe(const Part& file, Vocabulary vocabulary) {
  const Part model = file["model"];
  for (const char* key : {"dropout", "unk_token"}) RETURN_IF_ERROR(model.Require(key, nullptr));
  for (const char* key : {"continuing_subword_prefix", "end_of_word_suffix"}) RETURN_IF_ERROR(model.Require(key, ""));
  RETURN_IF_ERROR(model.Require("byte_fallback", false));
  BpeDefinition definition;
  definition.vocabulary = std::move(vocabulary);
  RETURN_IF_ERROR(file["normalizer"].Require("type", "NFC"));
  definition.nfc = file.Has("normalizer");
  bool byte_level = false;
  RETURN_IF_ERROR(ReadPreTokenizer(file["pre_tokenizer"], definition.split_patterns, byte_level));
  if (!byte_level) return Unimplemented("{} has no ByteLevel; only byte-level BPE is supported", file["pre_tokenizer"].place());
  ASSIGN_OR_RETURN(definition.merges, ReadMerges(model["merges"]));
  ASSIGN_OR_RETURN(definition.ignore_merges, model.Bool("ignore_merges", false));
  return MakeBpeTokenizer(std::move(definition), model.place());
}

absl::StatusOr<std::unique_ptr<Tokenizer>> ReadWordPiece(const Part& file, Vocabulary vocabulary) {
  const Part model = file["model"], normalizer = file["normalizer"];
  WordPieceDefinition definition;
  definition.vocabulary = std::move(vocabulary);
  if (!normalizer.Has("type")) return Unimplemented("{} is null; WordPiece is supported with BertNormalizer", normalizer.place());
  RETURN_IF_ERROR(normalizer.Require("type", "BertNormalizer"));
  RETURN_IF_ERROR(normalizer.Require("clean_text", true));
  if (!file["pre_tokenizer"].Has("type")) return Unimplemented("{} is null; WordPiece is supported with BertPreTokenizer", file.place());
  RETURN_IF_ERROR(file["pre_tokenizer"].Require("type", "BertPreTokenizer"));
  ASSIGN_OR_RETURN(definition.handle_chinese_chars, normalizer.Bool("handle_chinese_chars", true));
  ASSIGN_OR_RETURN(definition.lowercase, normalizer.Bool("lowercase", true));
  ASSIGN_OR_RETURN(definition.strip_accents, normalizer.Bool("strip_accents", definition.lowercase));
  ASSIGN_OR_RETURN(definition.unknown, model.String("unk_token", definition.unknown));
  ASSIGN_OR_RETURN(definition.prefix, model.String("continuing_subword_prefix", definition.prefix));
  ASSIGN_OR_RETURN(const int64_t longest, model.Int("max_input_chars_per_word", 100));
  definition.max_word_characters = static_cast<size_t>(std::max<int64_t>(longest, 0));
  ASSIGN_OR_RETURN(definition.cleanup, file["decoder"].Bool("cleanup", true));
  return MakeWordPieceTokenizer(std::move(definition), model.place());
}

// "eos_token" of a tokenizer_config.json is a string or an added token; -1 when there is none.
absl::StatusOr<int32_t> ReadEnd(const Part& config, const char* key, const Vocabulary& vocabulary) {
  if (!config.Has(key)) return -1;
  ASSIGN_OR_RETURN(const std::string token, config[key].json().is_object() ? config[key].String("content", "") : config.String(key, ""));
  const int32_t id = vocabulary.Find(token);
  if (id < 0) return InvalidArgument("{}.{} is '{}', which the vocabulary beside it lacks", config.place(), key, token);
  return id;
}

absl::Status ReadEnds(const std::string& tokenizer_path, Vocabulary& vocabulary) {
  const std::string path = std::filesystem::path(tokenizer_path).replace_filename("tokenizer_config.json");
  if (!std::filesystem::exists(path)) return vocabulary.SetEnds(-1, -1);
  ASSIGN_OR_RETURN(const Json json, ReadJson(path));
  const Part config(json, path);
  ASSIGN_OR_RETURN(const int32_t eos, ReadEnd(config, "eos_token", vocabulary));
  ASSIGN_OR_RETURN(const int32_t bos, ReadEnd(config, "bos_token", vocabulary));
  return vocabulary.SetEnds(eos, bos);
}

}  // namespace

absl::StatusOr<std::unique_ptr<Tokenizer>> LoadTokenizerJson(const std::string& path) {
  ASSIGN_OR_RETURN(const Json json, ReadJson(path));
  const Part file(json, path);
  ASSIGN_OR_RETURN(const std::string type, file["model"].String("type", "none"));
  if (type != "BPE" && type != "WordPiece") return Unimplemented("{}: model.type is '{}'; supported are BPE and WordPiece", path, type);
  ASSIGN_OR_RETURN(Vocabulary vocabulary, ReadVocabulary(file));
  RETURN_IF_ERROR(ReadEnds(path, vocabulary));
  return type == "BPE" ? ReadBpe(file, std::move(vocabulary)) : ReadWordPiece(file, std::move(vocabulary));
}

}  // namespace membank
