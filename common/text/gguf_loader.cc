#include "common/base/status_macros.h"
#include "common/tensors/gguf.h"
#include "common/text/bpe.h"
#include "common/text/loaders.h"
#include "common/text/sentencepiece.h"

namespace membank {
namespace {

struct PreTokenizer {
  std::string_view name;                  // tokenizer.ggml.pre
  std::vector<std::string> patterns;
  bool nfc = false, ignore_merges = false;
};

// The rules that the names stand for, as the models' own tokenizer.json has them.
absl::StatusOr<PreTokenizer> FindPreTokenizer(const std::string& name, const std::string& path) {
  static const std::vector<PreTokenizer>& known = *new std::vector<PreTokenizer>{
      {"default", {kGpt2Pattern}},
      {"gpt-2", {kGpt2Pattern}},
      {"smollm", {kDigitPattern, kGpt2Pattern}},
      {"llama-bpe", {kLlama3Pattern}, false, true},
      {"qwen2", {kQwen2Pattern}, true},
  };
  std::string names;
  for (const PreTokenizer& candidate : known) {
    if (candidate.name == name) return candidate;
    names += fmt::format("{}{}", names.empty() ? "" : ", ", candidate.name);
  }
  return Unimplemented("{}: tokenizer.ggml.pre is '{}'; supported are {}", path, name, names);
}

// A value that may be absent.
template <typename T>
absl::StatusOr<T> Optional(absl::StatusOr<T> value, T absent) {
  if (value.status().code() == absl::StatusCode::kNotFound) return absent;
  return value;
}

struct Tokens {
  std::vector<std::string> spellings;
  std::vector<int64_t> types;
  int32_t eos = -1, bos = -1;
};

absl::StatusOr<int32_t> ReadId(const GgufFile& file, const char* key, size_t size, const std::string& path) {
  ASSIGN_OR_RETURN(const int64_t id, Optional<int64_t>(file.GetInt(key), -1));
  if (id < -1 || id >= static_cast<int64_t>(size)) return InvalidArgument("{}: {} is {}, not one of the {} tokens", path, key, id, size);
  return static_cast<int32_t>(id);
}

absl::StatusOr<Tokens> ReadTokens(const GgufFile& file, const std::string& path) {
  Tokens tokens;
  ASSIGN_OR_RETURN(tokens.spellings, file.GetStrings("tokenizer.ggml.tokens"));
  ASSIGN_OR_RETURN(tokens.types, file.GetInts("tokenizer.ggml.token_type"));
  const size_t size = tokens.spellings.size();
  if (tokens.types.size() != size) {
    return InvalidArgument("{}: tokenizer.ggml.token_type has {} entries, tokenizer.ggml.tokens has {}", path, tokens.types.size(), size);
  }
  ASSIGN_OR_RETURN(tokens.eos, ReadId(file, "tokenizer.ggml.eos_token_id", size, path));
  ASSIGN_OR_RETURN(tokens.bos, ReadId(file, "tokenizer.ggml.bos_token_id", size, path));
  return tokens;
}

// Kind "gpt2": byte-level BPE.
absl::StatusOr<std::unique_ptr<Tokenizer>> LoadByteLevel(const GgufFile& file, Tokens tokens, const std::string& path) {
  ASSIGN_OR_RETURN(const std::string pre_name, Optional<std::string>(file.GetString("tokenizer.ggml.pre"), "default"));
  ASSIGN_OR_RETURN(const PreTokenizer pre, FindPreTokenizer(pre_name, path));
  ASSIGN_OR_RETURN(const std::vector<std::string> merges, file.GetStrings("tokenizer.ggml.merges"));
  BpeDefinition definition;
  for (const std::string& pattern : pre.patterns) {
    ASSIGN_OR_RETURN(SplitPattern compiled, SplitPattern::Compile(pattern));
    definition.pre_tokenizer.push_back(SplitBy(std::move(compiled)));
  }
  if (pre.nfc) definition.normalizer = {ToUnicodeForm(UnicodeForm::kNfc)};
  definition.ignore_merges = pre.ignore_merges;
  std::vector<std::pair<std::string, int32_t>> plain;
  std::vector<AddedToken> added;
  for (size_t i = 0; i < tokens.spellings.size(); ++i) {
    const int32_t id = static_cast<int32_t>(i);
    if (tokens.types[i] == SentencePiece::kControl || tokens.types[i] == SentencePiece::kUserDefined) {
      added.push_back({.id = id, .content = tokens.spellings[i], .special = tokens.types[i] == SentencePiece::kControl});
    } else {
      plain.emplace_back(std::move(tokens.spellings[i]), id);
    }
  }
  for (const std::string& merge : merges) {
    const size_t space = merge.find(' ', 1);
    if (space == std::string::npos) return InvalidArgument("{}: tokenizer.ggml.merges has '{}', which is not two parts", path, merge);
    definition.merges.emplace_back(merge.substr(0, space), merge.substr(space + 1));
  }
  ASSIGN_OR_RETURN(definition.vocabulary, Vocabulary::Make(std::move(plain), std::move(added), path));
  RETURN_IF_ERROR(definition.vocabulary.SetEnds(tokens.eos, tokens.bos));
  return MakeBpeTokenizer(std::move(definition), path);
}

// Kind "llama": SentencePiece's BPE. llama.cpp's files have no charsmap for it and always bytes to fall back to.
absl::StatusOr<std::unique_ptr<Tokenizer>> LoadSentencePieceBpe(const GgufFile& file, Tokens tokens, const std::string& path) {
  ASSIGN_OR_RETURN(const std::vector<double> scores, file.GetFloats("tokenizer.ggml.scores"));
  const size_t size = tokens.spellings.size();
  if (scores.size() != size) {
    return InvalidArgument("{}: tokenizer.ggml.scores has {} entries, tokenizer.ggml.tokens has {}", path, scores.size(), size);
  }
  SentencePieceDefinition definition;
  for (size_t i = 0; i < size; ++i) {
    if (tokens.types[i] < SentencePiece::kNormal || tokens.types[i] > SentencePiece::kByte) {
      return InvalidArgument("{}: tokenizer.ggml.token_type of token {} '{}' is {}; types are 1 to 6", path, i, tokens.spellings[i], tokens.types[i]);
    }
    definition.pieces.push_back(
        {std::move(tokens.spellings[i]), static_cast<float>(scores[i]), static_cast<SentencePiece::Type>(tokens.types[i])});
  }
  definition.eos_id = tokens.eos;
  definition.bos_id = tokens.bos;
  definition.byte_fallback = true;
  ASSIGN_OR_RETURN(definition.unknown_id, ReadId(file, "tokenizer.ggml.unknown_token_id", size, path));
  ASSIGN_OR_RETURN(definition.rules.add_prefix, Optional<bool>(file.GetBool("tokenizer.ggml.add_space_prefix"), true));
  definition.rules.remove_extra_spaces = false;
  return MakeSentencePieceTokenizer(std::move(definition), path);
}

}  // namespace

absl::StatusOr<std::unique_ptr<Tokenizer>> LoadTokenizerGguf(const std::string& path) {
  ASSIGN_OR_RETURN(const std::unique_ptr<GgufFile> file, GgufFile::Open(path));
  ASSIGN_OR_RETURN(const std::string model, file->GetString("tokenizer.ggml.model"));
  if (model != "gpt2" && model != "llama") {
    return Unimplemented("{}: tokenizer.ggml.model is '{}'; supported are gpt2 (byte-level BPE) and llama (SentencePiece BPE)", path, model);
  }
  ASSIGN_OR_RETURN(Tokens tokens, ReadTokens(*file, path));
  return model == "gpt2" ? LoadByteLevel(*file, std::move(tokens), path) : LoadSentencePieceBpe(*file, std::move(tokens), path);
}

}  // namespace membank
