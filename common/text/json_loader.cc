#include <algorithm>
#include <bit>
#include <cmath>
#include <filesystem>
#include <limits>

#include "common/base/file.h"
#include "common/base/json.h"
#include "common/base/status_macros.h"
#include "common/text/bpe.h"
#include "common/text/byte_tokens.h"
#include "common/text/json_part.h"
#include "common/text/json_steps.h"
#include "common/text/loaders.h"
#include "common/text/pipeline.h"
#include "common/text/unigram.h"
#include "common/text/wordpiece.h"

namespace membank {
namespace {

using Json = nlohmann::json;

absl::StatusOr<Json> ReadJson(const std::string& path) {
  ASSIGN_OR_RETURN(const std::string text, ReadFile(path));
  return ParseJsonObject(text, path);
}

absl::StatusOr<std::vector<AddedToken>> ReadAddedTokens(const JsonPart& file, const std::vector<NormalizerStep>& normalizer) {
  std::vector<AddedToken> added;
  for (const Json& json : file["added_tokens"].json()) {
    const JsonPart part(json, fmt::format("{}[{}]", file["added_tokens"].place(), added.size()));
    AddedToken token;
    ASSIGN_OR_RETURN(const int64_t id, part.Int("id", -1));
    token.id = static_cast<int32_t>(std::clamp<int64_t>(id, -1, INT32_MAX));
    ASSIGN_OR_RETURN(token.content, part.String("content", ""));
    ASSIGN_OR_RETURN(token.special, part.Bool("special", false));
    ASSIGN_OR_RETURN(token.normalized, part.Bool("normalized", !token.special));
    ASSIGN_OR_RETURN(token.single_word, part.Bool("single_word", false));
    ASSIGN_OR_RETURN(token.lstrip, part.Bool("lstrip", false));
    ASSIGN_OR_RETURN(token.rstrip, part.Bool("rstrip", false));
    if (token.normalized) {
      token.pattern = token.content;
      RETURN_IF_ERROR(Normalize(normalizer, token.pattern));
    }
    added.push_back(std::move(token));
  }
  return added;
}

// BPE and WordPiece have an object of ids by spelling, Unigram a list of [spelling, score].
absl::StatusOr<Vocabulary> ReadVocabulary(const JsonPart& file, bool unigram, const std::vector<NormalizerStep>& normalizer) {
  const JsonPart vocab = file["model"]["vocab"];
  std::vector<std::pair<std::string, int32_t>> tokens;
  if (unigram) {
    if (!vocab.json().is_array()) return InvalidArgument("{} is not a list of tokens and scores", vocab.place());
    for (const Json& entry : vocab.json()) {
      const bool named = entry.is_array() && !entry.empty() && entry[0].is_string();
      tokens.emplace_back(named ? entry[0].get<std::string>() : "", static_cast<int32_t>(tokens.size()));
    }
  } else {
    if (!vocab.json().is_object()) return InvalidArgument("{} is not an object of tokens", vocab.place());
    for (const auto& [spelling, id] : vocab.json().items()) {
      if (!id.is_number_integer()) return InvalidArgument("{}: the id of '{}' is not a whole number", vocab.place(), spelling);
      tokens.emplace_back(spelling, static_cast<int32_t>(std::clamp<int64_t>(id.get<int64_t>(), -1, INT32_MAX)));
    }
  }
  ASSIGN_OR_RETURN(std::vector<AddedToken> added, ReadAddedTokens(file, normalizer));
  return Vocabulary::Make(std::move(tokens), std::move(added), vocab.place());
}

absl::StatusOr<std::vector<std::pair<std::string, std::string>>> ReadMerges(const JsonPart& merges) {
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

absl::StatusOr<std::unique_ptr<Tokenizer>> ReadBpe(const JsonPart& file, Vocabulary vocabulary, std::vector<NormalizerStep> normalizer) {
  const JsonPart model = file["model"];
  RETURN_IF_ERROR(model.Require("dropout", nullptr));
  for (const char* key : {"continuing_subword_prefix", "end_of_word_suffix"}) RETURN_IF_ERROR(model.Require(key, ""));
  BpeDefinition definition;
  definition.normalizer = std::move(normalizer);
  ASSIGN_OR_RETURN(PreTokenizerParts pre_tokenizer, ReadPreTokenizer(file["pre_tokenizer"]));
  definition.pre_tokenizer = std::move(pre_tokenizer.steps);
  definition.byte_level = pre_tokenizer.byte_level;
  ASSIGN_OR_RETURN(definition.merges, ReadMerges(model["merges"]));
  ASSIGN_OR_RETURN(definition.ignore_merges, model.Bool("ignore_merges", false));
  ASSIGN_OR_RETURN(definition.byte_fallback, model.Bool("byte_fallback", false));
  ASSIGN_OR_RETURN(definition.fuse_unknown, model.Bool("fuse_unk", false));
  ASSIGN_OR_RETURN(const std::string unknown, model.String("unk_token", ""));
  if (!unknown.empty()) {
    definition.unknown = vocabulary.Find(unknown);
    if (definition.unknown < 0) return InvalidArgument("{}.unk_token is '{}', which the vocabulary lacks", model.place(), unknown);
  }
  if (definition.byte_level) {
    for (const std::string& letter : ByteAlphabet()) {   // else they would do nothing
      if ((definition.unknown < 0 && !definition.byte_fallback) || vocabulary.Find(letter) >= 0) continue;
      return Unimplemented("{}: unk_token and byte_fallback of a byte-level BPE are supported only where all 256 bytes are tokens; '{}' is none",
                           model.place(), letter);
    }
  } else {
    ASSIGN_OR_RETURN(const DecoderRules rules, ReadDecoder(file["decoder"]));
    definition.decoder = MakeDecoder(vocabulary, rules);
  }
  definition.vocabulary = std::move(vocabulary);
  return MakeBpeTokenizer(std::move(definition), model.place());
}

absl::StatusOr<UnigramDefinition> ReadUnigramTokens(const JsonPart& model) {
  const JsonPart vocab = model["vocab"];
  UnigramDefinition definition;
  definition.lowest_score = std::numeric_limits<double>::max();
  for (const Json& entry : vocab.json()) {
    const bool good = entry.is_array() && entry.size() == 2 && entry[0].is_string() && entry[1].is_number();
    const double score = good ? entry[1].get<double>() : std::nan("");
    if (!std::isfinite(score)) return InvalidArgument("{}[{}] is not a token and its score", vocab.place(), definition.tokens.size());
    definition.tokens.push_back({entry[0].get<std::string>(), static_cast<int32_t>(definition.tokens.size()), score});
    definition.lowest_score = std::min(definition.lowest_score, score);
  }
  ASSIGN_OR_RETURN(const int64_t unknown, model.Int("unk_id", -1));
  if (unknown < 0 || unknown >= static_cast<int64_t>(definition.tokens.size())) {
    return InvalidArgument("{}.unk_id is {}, not one of the {} tokens", model.place(), unknown, definition.tokens.size());
  }
  definition.unknown = static_cast<int32_t>(unknown);
  ASSIGN_OR_RETURN(definition.byte_fallback, model.Bool("byte_fallback", false));
  return definition;
}

absl::StatusOr<std::unique_ptr<Tokenizer>> ReadUnigram(const JsonPart& file, Vocabulary vocabulary, std::vector<NormalizerStep> normalizer) {
  ASSIGN_OR_RETURN(const UnigramDefinition definition, ReadUnigramTokens(file["model"]));
  ASSIGN_OR_RETURN(PreTokenizerParts pre_tokenizer, ReadPreTokenizer(file["pre_tokenizer"]));
  if (pre_tokenizer.byte_level) return Unimplemented("{} has ByteLevel; it is supported for BPE", file["pre_tokenizer"].place());
  ASSIGN_OR_RETURN(const DecoderRules rules, ReadDecoder(file["decoder"]));
  FingerprintBuilder fingerprint;
  fingerprint.Add("unigram");
  fingerprint.Add(vocabulary);
  for (const UnigramToken& token : definition.tokens) fingerprint.Add(std::bit_cast<int64_t>(token.score));
  for (const NormalizerStep& step : normalizer) fingerprint.Add(step.description);
  for (const PreTokenizerStep& step : pre_tokenizer.steps) fingerprint.Add(step.description);
  fingerprint.Add(int64_t{definition.unknown} * 2 + definition.byte_fallback);

  PipelineParts parts;
  parts.fingerprint = fingerprint.Finish();
  parts.model = MakeUnigramModel(definition, vocabulary);
  parts.decoder = MakeDecoder(vocabulary, rules);
  parts.vocabulary = std::move(vocabulary);
  parts.normalizer = std::move(normalizer);
  parts.pre_tokenizer = std::move(pre_tokenizer.steps);
  return MakePipeline(std::move(parts));
}

absl::StatusOr<BertRules> ReadBertRules(const JsonPart& part) {
  if (!part.Has("type")) return Unimplemented("{} is null; WordPiece is supported with BertNormalizer", part.place());
  RETURN_IF_ERROR(part.Require("type", "BertNormalizer"));
  RETURN_IF_ERROR(part.Require("clean_text", true));
  BertRules rules;
  ASSIGN_OR_RETURN(rules.handle_chinese_chars, part.Bool("handle_chinese_chars", true));
  ASSIGN_OR_RETURN(rules.lowercase, part.Bool("lowercase", true));
  ASSIGN_OR_RETURN(rules.strip_accents, part.Bool("strip_accents", rules.lowercase));
  return rules;
}

absl::StatusOr<std::unique_ptr<Tokenizer>> ReadWordPiece(const JsonPart& file, Vocabulary vocabulary, const BertRules& rules) {
  const JsonPart model = file["model"];
  WordPieceDefinition definition;
  definition.vocabulary = std::move(vocabulary);
  definition.rules = rules;
  if (!file["pre_tokenizer"].Has("type")) return Unimplemented("{} is null; WordPiece is supported with BertPreTokenizer", file.place());
  RETURN_IF_ERROR(file["pre_tokenizer"].Require("type", "BertPreTokenizer"));
  ASSIGN_OR_RETURN(definition.unknown, model.String("unk_token", definition.unknown));
  ASSIGN_OR_RETURN(definition.prefix, model.String("continuing_subword_prefix", definition.prefix));
  ASSIGN_OR_RETURN(const int64_t longest, model.Int("max_input_chars_per_word", 100));
  definition.max_word_characters = static_cast<size_t>(std::max<int64_t>(longest, 0));
  ASSIGN_OR_RETURN(definition.cleanup, file["decoder"].Bool("cleanup", true));
  return MakeWordPieceTokenizer(std::move(definition), model.place());
}

// "eos_token" of a tokenizer_config.json is a string or an added token; -1 when there is none.
absl::StatusOr<int32_t> ReadEnd(const JsonPart& config, const char* key, const Vocabulary& vocabulary) {
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
  const JsonPart config(json, path);
  ASSIGN_OR_RETURN(const int32_t eos, ReadEnd(config, "eos_token", vocabulary));
  ASSIGN_OR_RETURN(const int32_t bos, ReadEnd(config, "bos_token", vocabulary));
  return vocabulary.SetEnds(eos, bos);
}

}  // namespace

absl::StatusOr<std::unique_ptr<Tokenizer>> LoadTokenizerJson(const std::string& path) {
  ASSIGN_OR_RETURN(const Json json, ReadJson(path));
  const JsonPart file(json, path);
  ASSIGN_OR_RETURN(const std::string type, file["model"].String("type", "none"));
  if (type != "BPE" && type != "Unigram" && type != "WordPiece") {
    return Unimplemented("{}: model.type is '{}'; supported are BPE, Unigram and WordPiece", path, type);
  }
  std::vector<NormalizerStep> normalizer;
  BertRules bert;
  if (type == "WordPiece") {
    ASSIGN_OR_RETURN(bert, ReadBertRules(file["normalizer"]));
    normalizer = {NormalizeBert(bert)};
  } else {
    ASSIGN_OR_RETURN(normalizer, ReadNormalizer(file["normalizer"]));
  }
  ASSIGN_OR_RETURN(Vocabulary vocabulary, ReadVocabulary(file, type == "Unigram", normalizer));
  RETURN_IF_ERROR(ReadEnds(path, vocabulary));
  if (type == "WordPiece") return ReadWordPiece(file, std::move(vocabulary), bert);
  if (type == "Unigram") return ReadUnigram(file, std::move(vocabulary), std::move(normalizer));
  return ReadBpe(file, std::move(vocabulary), std::move(normalizer));
}

}  // namespace membank
