#include "common/text/loaders.h"
#include "tests/fuzz/fuzz_target.h"

namespace membank::fuzz {
namespace {

void Use(const absl::StatusOr<std::unique_ptr<Tokenizer>>& tokenizer) {
  if (!tokenizer.ok()) return;
  const auto ids = (*tokenizer)->Encode("Hello, w\xc3\xb6rld 123 <|endoftext|>\n", /*parse_special=*/true);
  if (ids.ok()) (void)(*tokenizer)->Decode(*ids).ok();
  (void)(*tokenizer)->Decode({-1, 0, 1 << 30}).ok();
  (void)(*tokenizer)->Fingerprint();
}

void RunTokenizerJson(std::string_view input) { Use(LoadTokenizerJson(WriteScratch("tokenizer.json", input))); }

std::vector<std::string> TokenizerJsonSeeds() {
  std::string bytes;  // the 256 letters of byte-level BPE's alphabet, in the order of their bytes
  int next = 256, id = 0;
  for (int byte = 0; byte < 256; ++byte) {
    const bool printable = (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || byte >= 174;
    const int letter = printable ? byte : next++;
    std::string utf8;
    if (letter < 128) utf8 = static_cast<char>(letter);
    else utf8 = {static_cast<char>(0xc0 | letter >> 6), static_cast<char>(0x80 | (letter & 63))};
    if (letter == '"' || letter == '\\') utf8 = "\\" + utf8;
    bytes += "\"" + utf8 + "\":" + std::to_string(id++) + ",";
  }
  return {
      R"({"added_tokens":[{"id":258,"content":"<|endoftext|>","special":true}],"normalizer":{"type":"NFC"},"pre_tokenizer":{"type":"Sequence",)"
      R"("pretokenizers":[{"type":"Digits","individual_digits":true},{"type":"Split","pattern":{"Regex":"\\p{L}+"},"behavior":"Isolated"},)"
      R"({"type":"ByteLevel","add_prefix_space":false,"use_regex":true}]},"model":{"type":"BPE","vocab":{)" + bytes +
          R"("He":256,"ll":257},"merges":["H e",["l","l"]]}})",
      R"({"added_tokens":[],"normalizer":{"type":"BertNormalizer"},"pre_tokenizer":{"type":"BertPreTokenizer"},"decoder":{"cleanup":true},)"
      R"("model":{"type":"WordPiece","unk_token":"[UNK]","max_input_chars_per_word":100,"vocab":{"[UNK]":0,"hello":1,"wo":2,"##rld":3,",":4}}})",
      R"({"model":{"type":"BPE","dropout":)" + NestedLists(100000) + "}}",
      ReadSource("tests/golden/tokenizers/metaspace/tokenizer.json"),
      ReadSource("tests/golden/tokenizers/unigram/tokenizer.json"),
      R"({"added_tokens":[{"id":3,"content":"\u2581x","normalized":true,"single_word":true,"lstrip":true,"rstrip":true}],"normalizer":{"type":"Sequence",)"
      R"("normalizers":[{"type":"NFKC"},{"type":"Prepend","prepend":"_"},{"type":"Replace","pattern":{"Regex":"l+"},"content":"L"}]},"pre_tokenizer":)"
      R"({"type":"Split","pattern":{"String":" "},"behavior":"MergedWithNext"},"decoder":{"type":"Fuse"},)"
      R"("model":{"type":"BPE","unk_token":"u","fuse_unk":true,"byte_fallback":true,"vocab":{"u":0,"H":1,"<0xC3>":2},"merges":[]}})",
  };
}

void RunTokenizerGguf(std::string_view input) { Use(LoadTokenizerGguf(WriteScratch("tokenizer.gguf", input))); }

std::vector<std::string> TokenizerGgufSeeds() {
  return {ReadSource("tests/golden/tokenizers/qwen2/tokenizer.gguf"), ReadSource("tests/golden/tokenizers/spm_bpe/tokenizer.gguf")};
}

void RunTokenizerModel(std::string_view input) { Use(LoadTokenizerSentencePiece(WriteScratch("tokenizer.model", input))); }

std::vector<std::string> TokenizerModelSeeds() {
  return {ReadSource("tests/golden/tokenizers/spm_bpe/tokenizer.model"), ReadSource("tests/golden/tokenizers/spm_unigram/tokenizer.model")};
}

}  // namespace

std::vector<Target> TextTargets() {
  return {{"tokenizer_json", RunTokenizerJson, TokenizerJsonSeeds}, {"tokenizer_gguf", RunTokenizerGguf, TokenizerGgufSeeds},
          {"tokenizer_model", RunTokenizerModel, TokenizerModelSeeds}};
}

}  // namespace membank::fuzz
