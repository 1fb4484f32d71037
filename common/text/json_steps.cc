#include "common/text/json_steps.h"

#include "common/text/bpe.h"

namespace membank {
namespace {

using Json = nlohmann::json;

// The steps of a Sequence or the one step itself.
absl::Status ForEachStep(const JsonPart& part, const char* list, const std::function<absl::Status(const JsonPart&, const std::string&)>& read) {
  if (part.json().is_null()) return absl::OkStatus();
  ASSIGN_OR_RETURN(const std::string type, part.String("type", "none"));
  if (type != "Sequence") return read(part, type);
  size_t i = 0;
  for (const Json& json : part[list].json()) {
    RETURN_IF_ERROR(ForEachStep({json, fmt::format("{}.{}[{}]", part.place(), list, i++)}, list, read));
  }
  return absl::OkStatus();
}

absl::StatusOr<SplitPattern> ReadPattern(const JsonPart& part) {
  ASSIGN_OR_RETURN(const std::string regex, part.String("Regex", ""));
  ASSIGN_OR_RETURN(const std::string text, part.String("String", ""));
  if (regex.empty() && text.empty()) return InvalidArgument("{} is neither a Regex nor a String", part.place());
  absl::StatusOr<SplitPattern> pattern = regex.empty() ? SplitPattern::CompileLiteral(text) : SplitPattern::Compile(regex);
  if (!pattern.ok()) return Annotate(pattern.status(), part.place());
  return pattern;
}

absl::StatusOr<std::string> DecodeBase64(const std::string& text, const std::string& place) {
  static constexpr std::string_view kLetters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  std::string bytes;
  uint32_t bits = 0;
  int count = 0;
  for (char c : std::string_view(text).substr(0, text.find_last_not_of('=') + 1)) {
    const size_t value = kLetters.find(c);
    if (value == std::string_view::npos) return InvalidArgument("{} is not base64", place);
    bits = bits << 6 | static_cast<uint32_t>(value);
    count += 6;
    if (count < 8) continue;
    count -= 8;
    bytes += static_cast<char>(bits >> count & 0xff);
  }
  return bytes;
}

absl::Status ReadNormalizerStep(const JsonPart& part, const std::string& type, std::vector<NormalizerStep>& steps) {
  static constexpr std::pair<std::string_view, UnicodeForm> kForms[] = {
      {"NFC", UnicodeForm::kNfc}, {"NFD", UnicodeForm::kNfd}, {"NFKC", UnicodeForm::kNfkc}, {"NFKD", UnicodeForm::kNfkd}};
  for (const auto& [name, form] : kForms) {
    if (type != name) continue;
    steps.push_back(ToUnicodeForm(form));
    return absl::OkStatus();
  }
  if (type == "Prepend") {
    ASSIGN_OR_RETURN(const std::string prefix, part.String("prepend", ""));
    steps.push_back(PrependText(prefix));
    return absl::OkStatus();
  }
  if (type == "Replace") {
    ASSIGN_OR_RETURN(const std::string content, part.String("content", ""));
    ASSIGN_OR_RETURN(const std::string text, part["pattern"].String("String", ""));
    if (!text.empty()) {
      steps.push_back(ReplaceText(text, content));
      return absl::OkStatus();
    }
    ASSIGN_OR_RETURN(SplitPattern pattern, ReadPattern(part["pattern"]));
    steps.push_back(ReplacePattern(std::move(pattern), content));
    return absl::OkStatus();
  }
  if (type == "Precompiled") {
    ASSIGN_OR_RETURN(const std::string text, part.String("precompiled_charsmap", ""));
    if (text.empty()) return absl::OkStatus();
    ASSIGN_OR_RETURN(std::string bytes, DecodeBase64(text, part.place()));
    absl::StatusOr<Charsmap> map = Charsmap::Parse(std::move(bytes));
    if (!map.ok()) return Annotate(map.status(), part.place());
    steps.push_back(MapCharacters(std::make_shared<const Charsmap>(*std::move(map))));
    return absl::OkStatus();
  }
  return Unimplemented("{} is '{}'; supported are NFC, NFD, NFKC, NFKD, Replace, Prepend, Precompiled, Sequence of these, and for WordPiece "
                       "BertNormalizer",
                       part.place(), type);
}

absl::StatusOr<SplitBehavior> ReadBehavior(const JsonPart& part) {
  ASSIGN_OR_RETURN(const std::string behavior, part.String("behavior", ""));
  if (behavior == "Isolated") return SplitBehavior::kIsolated;
  if (behavior == "Removed") return SplitBehavior::kRemoved;
  if (behavior == "MergedWithPrevious") return SplitBehavior::kMergedWithPrevious;
  if (behavior == "MergedWithNext") return SplitBehavior::kMergedWithNext;
  return Unimplemented("{}.behavior is '{}'; supported are Isolated, Removed, MergedWithPrevious, MergedWithNext", part.place(), behavior);
}

// Of a pre-tokenizer or a decoder.
absl::StatusOr<PrependScheme> ReadMetaspace(const JsonPart& part) {
  RETURN_IF_ERROR(part.Require("replacement", std::string(kMetaspace)));
  ASSIGN_OR_RETURN(const bool add_prefix, part.Bool("add_prefix_space", true));   // before prepend_scheme existed
  ASSIGN_OR_RETURN(const std::string scheme, part.String("prepend_scheme", add_prefix ? "always" : "never"));
  if (scheme == "always") return PrependScheme::kAlways;
  if (scheme == "first") return PrependScheme::kFirst;
  if (scheme == "never") return PrependScheme::kNever;
  return Unimplemented("{}.prepend_scheme is '{}'; supported are always, first, never", part.place(), scheme);
}

absl::Status AddPattern(const std::string& pattern, SplitBehavior behavior, std::vector<PreTokenizerStep>& steps) {
  ASSIGN_OR_RETURN(SplitPattern compiled, SplitPattern::Compile(pattern));
  steps.push_back(SplitBy(std::move(compiled), behavior));
  return absl::OkStatus();
}

absl::Status ReadPreTokenizerStep(const JsonPart& part, const std::string& type, PreTokenizerParts& parts) {
  if (parts.byte_level) return Unimplemented("{}: '{}' after ByteLevel is not supported", part.place(), type);
  if (type == "ByteLevel") {
    ASSIGN_OR_RETURN(const bool prefix, part.Bool("add_prefix_space", true));
    ASSIGN_OR_RETURN(const bool use_regex, part.Bool("use_regex", true));
    parts.byte_level = true;
    if (prefix) parts.steps.push_back(PrefixSpace());
    return use_regex ? AddPattern(kGpt2Pattern, SplitBehavior::kIsolated, parts.steps) : absl::OkStatus();
  }
  if (type == "Digits") {
    ASSIGN_OR_RETURN(const bool individual, part.Bool("individual_digits", false));
    return AddPattern(individual ? kDigitPattern : kDigitsPattern, SplitBehavior::kIsolated, parts.steps);
  }
  if (type == "Split") {
    RETURN_IF_ERROR(part.Require("invert", false));
    ASSIGN_OR_RETURN(const SplitBehavior behavior, ReadBehavior(part));
    ASSIGN_OR_RETURN(SplitPattern pattern, ReadPattern(part["pattern"]));
    parts.steps.push_back(SplitBy(std::move(pattern), behavior));
    return absl::OkStatus();
  }
  if (type == "Metaspace") {
    ASSIGN_OR_RETURN(const PrependScheme scheme, ReadMetaspace(part));
    ASSIGN_OR_RETURN(const bool split, part.Bool("split", true));
    parts.steps.push_back(Metaspace(scheme, split));
    return absl::OkStatus();
  }
  if (type == "WhitespaceSplit") return AddPattern("\\s+", SplitBehavior::kRemoved, parts.steps);
  return Unimplemented("{} is '{}'; supported are ByteLevel, Digits, Split, Metaspace, WhitespaceSplit, Sequence of these, and for WordPiece "
                       "BertPreTokenizer",
                       part.place(), type);
}

absl::Status ReadDecoderStep(const JsonPart& part, const std::string& type, DecoderRules& rules, bool& fused) {
  if (type == "ByteLevel") {
    rules.byte_alphabet = true;
  } else if (type == "Metaspace") {
    ASSIGN_OR_RETURN(const PrependScheme scheme, ReadMetaspace(part));
    rules.metaspace_to_space = true;
    rules.drop_first_metaspaces = scheme != PrependScheme::kNever;
  } else if (type == "Replace") {
    RETURN_IF_ERROR(part["pattern"].Require("String", std::string(kMetaspace)));
    RETURN_IF_ERROR(part.Require("content", " "));
    rules.metaspace_to_space = true;
  } else if (type == "ByteFallback") {
    rules.byte_tokens = true;
  } else if (type == "Fuse") {
    fused = true;
  } else if (type == "Strip" && fused) {
    RETURN_IF_ERROR(part.Require("content", " "));
    RETURN_IF_ERROR(part.Require("start", 1));
    RETURN_IF_ERROR(part.Require("stop", 0));
    rules.strip_spaces = 1;
  } else {
    return Unimplemented("{} is '{}'; supported are ByteLevel, Metaspace, Replace, ByteFallback, Fuse, Strip after Fuse, Sequence of these, and "
                         "for WordPiece WordPiece",
                         part.place(), type);
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::vector<NormalizerStep>> ReadNormalizer(const JsonPart& part) {
  std::vector<NormalizerStep> steps;
  RETURN_IF_ERROR(ForEachStep(part, "normalizers",
                              [&](const JsonPart& step, const std::string& type) { return ReadNormalizerStep(step, type, steps); }));
  return steps;
}

absl::StatusOr<PreTokenizerParts> ReadPreTokenizer(const JsonPart& part) {
  PreTokenizerParts parts;
  RETURN_IF_ERROR(ForEachStep(part, "pretokenizers",
                              [&](const JsonPart& step, const std::string& type) { return ReadPreTokenizerStep(step, type, parts); }));
  return parts;
}

absl::StatusOr<DecoderRules> ReadDecoder(const JsonPart& part) {
  DecoderRules rules;
  bool fused = false;
  if (part.json().is_null()) return Unimplemented("{} is null: what stands between two tokens is not declared", part.place());
  RETURN_IF_ERROR(ForEachStep(part, "decoders",
                              [&](const JsonPart& step, const std::string& type) { return ReadDecoderStep(step, type, rules, fused); }));
  return rules;
}

}  // namespace membank
