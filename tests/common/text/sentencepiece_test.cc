// The kinds of tokenizers that SentencePiece introduced, in all their files. The goldens come from make_sentencepiece.py.
#include "common/text/sentencepiece.h"

#include "common/base/file.h"
#include "tests/common/text/golden.h"

namespace membank {
namespace {

TEST(SentencePiece, ModelFilesEqualTheLibrary) {
  for (const std::string name : {"spm_bpe", "spm_unigram"}) {
    const auto tokenizer = Load(Golden(name));   // a folder with a tokenizer.model
    ASSERT_NE(tokenizer, nullptr);
    ExpectGolden(*tokenizer, name + ".jsonl");
    EXPECT_EQ(tokenizer->bos_id(), 1);
    EXPECT_EQ(tokenizer->eos_id(), 2);
    EXPECT_EQ(*tokenizer->TokenId("</s>"), 2);
    EXPECT_EQ(*tokenizer->Encode("</s>", /*parse_special=*/true), Ids{2});
  }
}

TEST(SentencePiece, GgufOfKindLlamaEqualsTheModelFile) {
  const auto gguf = Load(Golden("spm_bpe/tokenizer.gguf")), model = Load(Golden("spm_bpe"));
  ASSERT_TRUE(gguf != nullptr && model != nullptr);
  ExpectGolden(*gguf, "spm_bpe.jsonl");
  EXPECT_EQ(gguf->bos_id(), 1);
  EXPECT_EQ(gguf->eos_id(), 2);
}

TEST(SentencePiece, TokenizerJsonEqualsHuggingFace) {
  for (const std::string name : {"llama2", "metaspace", "unigram", "neox"}) {
    const auto tokenizer = Load(Golden(name));
    ASSERT_NE(tokenizer, nullptr);
    ExpectGolden(*tokenizer, name + ".jsonl");
  }
}

// Ids and sums of SentencePiece's library on the file's own vocabulary: see sentencepiece_of_gguf in reference.py.
TEST(SentencePiece, Gemma3FromGguf) {
  const std::string path = std::string(std::getenv("MEMBANK_CACHE")) + "/models/gemma-3-270m-q4_k_m.gguf";
  if (!std::ifstream(path)) GTEST_SKIP() << path << " is not there; deploy/setup --models installs it";
  const auto tokenizer = Load(path);
  ASSERT_NE(tokenizer, nullptr);
  ExpectGolden(*tokenizer, "gemma3.jsonl");
  EXPECT_EQ(tokenizer->vocab_size(), 262144);
  EXPECT_EQ(tokenizer->eos_id(), 1);
  EXPECT_EQ(tokenizer->bos_id(), 2);
  EXPECT_TRUE(tokenizer->IsSpecial(*tokenizer->TokenId("<start_of_turn>")));
  EXPECT_EQ(*tokenizer->Encode("<bos>a", true), (Ids{2, tokenizer->Encode("a")->at(0)}));
}

TEST(SentencePiece, RoundTripOfAnyText) {
  std::mt19937 random(3);
  for (const std::string name : {"llama2", "spm_bpe", "spm_bpe/tokenizer.gguf"}) {   // the others have no tokens for bytes
    const auto tokenizer = Load(Golden(name));
    ASSERT_NE(tokenizer, nullptr);
    for (int i = 0; i < 500; ++i) {
      const std::string text = RandomText(random, 1 + random() % 40);
      if (text.find("\xe2\x96\x81") != std::string::npos) continue;   // U+2581 is how a space is written: it comes back as one
      ASSERT_EQ(*tokenizer->Decode(*tokenizer->Encode(text)), text) << name;
    }
  }
}

// A stream continues a text: its first space stays. What it gives is what the whole adds to the part before.
TEST(SentencePiece, StreamNeverBreaksASequence) {
  std::mt19937 random(4);
  for (const std::string name : {"llama2", "metaspace", "unigram", "spm_bpe"}) {
    const auto tokenizer = Load(Golden(name));
    ASSERT_NE(tokenizer, nullptr);
    const Ids before = *tokenizer->Encode("It is");
    for (int round = 0; round < 300; ++round) {
      Ids ids;
      if (round % 2 == 0) {
        ids = *tokenizer->Encode(RandomText(random, 20));
      } else {   // any ids: also bytes that form no UTF-8
        for (int i = 0; i < 30; ++i) ids.push_back(static_cast<int32_t>(random() % tokenizer->vocab_size()));
      }
      StreamDecoder stream(*tokenizer);
      std::string streamed = *tokenizer->Decode(before);
      for (int32_t id : ids) {
        const auto piece = stream.Push(id);
        ASSERT_TRUE(piece.ok());
        ASSERT_EQ(FindInvalidUtf8(*piece), std::string::npos);
        streamed += *piece;
      }
      streamed += stream.Finish();
      Ids whole = before;
      whole.insert(whole.end(), ids.begin(), ids.end());
      ASSERT_EQ(streamed, Lossy(*tokenizer->Decode(whole))) << name;
    }
  }
}

TEST(SentencePiece, AnUnusedPieceIsTakenApart) {
  SentencePieceDefinition definition;
  definition.rules = {.add_prefix = false, .remove_extra_spaces = false};
  const auto type = [](SentencePiece::Type t) { return t; };
  definition.pieces = {{"<unk>", 0, type(SentencePiece::kUnknown)}, {"a", -1, type(SentencePiece::kNormal)}, {"b", -2, type(SentencePiece::kNormal)},
                       {"ab", -3, type(SentencePiece::kUnused)},    {"aba", -4, type(SentencePiece::kNormal)}};
  const auto tokenizer = MakeSentencePieceTokenizer(definition, "tiny");
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  EXPECT_EQ(*(*tokenizer)->Encode("ab"), (Ids{1, 2}));
  EXPECT_EQ(*(*tokenizer)->Encode("aba"), (Ids{4}));
  EXPECT_EQ(*(*tokenizer)->Encode("abxyab"), (Ids{1, 2, 0, 1, 2}));   // unknown characters in a row are one token
}

TEST(SentencePiece, BadDefinitionsNameTheProblem) {
  const auto expect = [](std::vector<SentencePiece> pieces, const std::string& problem) {
    SentencePieceDefinition definition;
    definition.pieces = std::move(pieces);
    const absl::Status status = MakeSentencePieceTokenizer(std::move(definition), "tiny").status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << problem;
    EXPECT_NE(std::string(status.message()).find(problem), std::string::npos) << status;
  };
  expect({}, "tiny: the unknown piece is -1, not one of the 0 pieces");
  expect({{"a", 0, SentencePiece::kNormal}}, "the unknown piece is -1, not one of the 1 pieces");
  expect({{"", 0, SentencePiece::kNormal}}, "piece 0 is empty");
  expect({{"\xff", 0, SentencePiece::kNormal}}, "piece 0 is not UTF-8");
  expect({{"a", std::nanf(""), SentencePiece::kNormal}}, "the score of piece 0 'a' is not a number");
  expect({{"u", 0, SentencePiece::kUnknown}, {"u", 0, SentencePiece::kNormal}}, "token 'u' has two ids");
}

TEST(SentencePiece, DamagedFilesAreErrors) {
  const auto load = [](const std::string& path) { return LoadTokenizer(path).status(); };
  for (const std::string name : {"spm_bpe/tokenizer.model", "spm_bpe/tokenizer.gguf", "spm_unigram/tokenizer.model", "unigram/tokenizer.json"}) {
    const std::string whole = *ReadFile(Golden(name));
    EXPECT_GT(CountRefusedFlips(whole, 120, whole.size(), load), 5) << name;
  }
  const std::string whole = *ReadFile(Golden("spm_unigram/tokenizer.model"));
  for (size_t size = 0; size + 700 < whole.size(); size += 61) {   // the charsmap and the specs lie at the end
    const std::string path = WriteTemporary("part.model", whole.substr(0, size));
    const absl::Status status = load(path);
    EXPECT_FALSE(status.ok()) << "cut at " << size;
    std::remove(path.c_str());
  }
}

}  // namespace
}  // namespace membank
