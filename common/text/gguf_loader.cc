#include "common/base/status_macros.h"
#include "common/tensors/gguf.h"
#include "common/text/bpe.h"
#include "common/text/loaders.h"

namespace membank {
namespace {

constexpr int64_t kControlToken = 3, kUserDefinedToken = 4;   // llama.cpp, enum llama_token_type

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

}  // namespace

absl::StatusOr<std::unique_ptr<Tokenizer>> LoadTokenizerGguf(const std::string& path) {
  ASSIGN_OR_RETURN(const std::unique_ptr<GgufFile> file, GgufFile::Open(path));
  ASSIGN_OR_RETURN(const std::string model, file->GetString("tokenizer.ggml.model"));
  if (model != "gpt2") return Unimplemented("{}: tokenizer.ggml.model is '{}'; supported is gpt2 (byte-level BPE)", path, model);
  ASSIGN_OR_RETURN(const std::string pre_name, Optional<std::string>(file->GetString("tokenizer.ggml.pre"), "default"));
  ASSIGN_OR_RETURN(const PreTokenizer pre, FindPreTokenizer(pre_name, path));
  ASSIGN_OR_RETURN(std::vector<std::string> spellings, file->GetStrings("tokenizer.ggml.tokens"));
  ASSIGN_OR_RETURN(const std::vector<int64_t> types, file->GetInts("tokenizer.ggml.token_type"));
  ASSIGN_OR_RETURN(const std::vector<std::string> merges, file->GetStrings("tokenizer.ggml.merges"));
  ASSIGN_OR_RETURN(const int64_t eos, Optional<int64_t>(file->GetInt("tokenizer.ggml.eos_token_id"), -1));
  ASSIGN_OR_RETURN(const int64_t bos, Optional<int64_t>(file->GetInt("tokenizer.ggml.bos_token_id"), -1));
  if (types.size() != spellings.size()) {
    return InvalidArgument("{}: tokenizer.ggml.token_type has {} entries, tokenizer.ggml.tokens has {}", path, types.size(), spellings.size());
  }

  BpeDefinition definition;
  definition.split_patterns = pre.patterns;
  definition.nfc = pre.nfc;
  definition.ignore_merges = pre.ignore_merges;
  std::vector<std::pair<std::string, int32_t>> tokens;
  std::vector<AddedToken> added;
  for (size_t i = 0; i < spellings.size(); ++i) {
    if (types[i] == kControlToken || types[i] == kUserDefinedToken) {
      added.push_back({static_cast<int32_t>(i), spellings[i], types[i] == kControlToken});
    } else {
      tokens.emplace_back(std::move(spellings[i]), static_cast<int32_t>(i));
    }
  }
  for (const std::string& merge : merges) {
    const size_t space = merge.find(' ', 1);
    if (space == std::string::npos) return InvalidArgument("{}: tokenizer.ggml.merges has '{}', which is not two parts", path, merge);
    definition.merges.emplace_back(merge.substr(0, space), merge.substr(space + 1));
  }
  ASSIGN_OR_RETURN(definition.vocabulary, Vocabulary::Make(std::move(tokens), std::move(added), path));
  for (int64_t id : {eos, bos}) {
    if (id < -1 || id >= definition.vocabulary.size()) return InvalidArgument("{}: end or begin of text is token {}, out of range", path, id);
  }
  RETURN_IF_ERROR(definition.vocabulary.SetEnds(static_cast<int32_t>(eos), static_cast<int32_t>(bos)));
  return MakeBpeTokenizer(std::move(definition), path);
}

}  // namespace membank
