#include "common/text/bpe.h"

#include "gtest/gtest.h"

namespace membank {
namespace {

// A vocabulary of a, b, space and what the merges make of them.
absl::StatusOr<std::unique_ptr<Tokenizer>> MakeTiny(std::vector<std::pair<std::string, std::string>> merges, bool ignore_merges = false) {
  BpeDefinition definition;
  auto vocabulary = Vocabulary::Make({{"a", 0}, {"b", 1}, {"\xc4\xa0", 2}, {"ab", 3}, {"aba", 4}, {"ba", 5}}, {{6, "<x>", true}, {7, "<x><x>", false}}, "tiny");
  if (!vocabulary.ok()) return vocabulary.status();
  definition.vocabulary = *std::move(vocabulary);
  definition.merges = std::move(merges);
  definition.pre_tokenizer = {SplitBy(*SplitPattern::Compile(kGpt2Pattern))};
  definition.ignore_merges = ignore_merges;
  return MakeBpeTokenizer(std::move(definition), "tiny");
}

using Ids = std::vector<int32_t>;

TEST(Bpe, RanksDecideAndTheLeftmostOfEqualsGoesFirst) {
  const auto ab_first = MakeTiny({{"a", "b"}, {"b", "a"}, {"ab", "a"}});
  ASSERT_TRUE(ab_first.ok()) << ab_first.status();
  EXPECT_EQ(*(*ab_first)->Encode("aba"), (Ids{4}));
  EXPECT_EQ(*(*ab_first)->Encode("abab"), (Ids{3, 3}));   // both "ab" before "ab"+"a"
  EXPECT_EQ(*(*ab_first)->Encode("baba"), (Ids{1, 4}));
  const auto ba_first = MakeTiny({{"b", "a"}, {"a", "b"}});
  EXPECT_EQ(*(*ba_first)->Encode("aba"), (Ids{0, 5}));
  EXPECT_EQ(*(*ba_first)->Encode("aba ab"), (Ids{0, 5, 2, 3}));
}

TEST(Bpe, IgnoreMergesTakesWholeWords) {
  EXPECT_EQ(*(*MakeTiny({{"b", "a"}}, false))->Encode("aba"), (Ids{0, 5}));
  EXPECT_EQ(*(*MakeTiny({{"b", "a"}}, true))->Encode("aba"), (Ids{4}));
}

TEST(Bpe, AddedTokensLongestFirstSpecialOnRequest) {
  const auto tokenizer = MakeTiny({{"a", "b"}});
  EXPECT_EQ(*(*tokenizer)->Encode("a<x>b", true), (Ids{0, 6, 1}));
  EXPECT_EQ(*(*tokenizer)->Encode("<x><x><x>", true), (Ids{7, 6}));
  EXPECT_EQ(*(*tokenizer)->Encode("a<x>b", false), (Ids{0, 1}));         // the vocabulary lacks '<', 'x' and '>'
  EXPECT_EQ(*(*tokenizer)->Encode("a<x><x>b", false), (Ids{0, 7, 1}));   // not special: always found
  EXPECT_EQ(*(*tokenizer)->Decode(Ids{0, 6, 7}), "a<x><x>");
  EXPECT_EQ(*(*tokenizer)->Decode(Ids{0, 6, 7}, false), "a<x><x><x>");
  EXPECT_TRUE((*tokenizer)->IsSpecial(6));
  EXPECT_FALSE((*tokenizer)->IsSpecial(7));
  EXPECT_FALSE((*tokenizer)->IsSpecial(-1));
  EXPECT_FALSE((*tokenizer)->IsSpecial(8));
}

TEST(Bpe, FingerprintSeesMergesAndRules) {
  const std::string base = (*MakeTiny({{"a", "b"}}))->Fingerprint();
  EXPECT_EQ(base.size(), 32u);
  EXPECT_EQ(base, (*MakeTiny({{"a", "b"}}))->Fingerprint());
  EXPECT_NE(base, (*MakeTiny({{"b", "a"}}))->Fingerprint());
  EXPECT_NE(base, (*MakeTiny({{"a", "b"}}, true))->Fingerprint());
}

TEST(Bpe, AWordOfAMegabyteIsNotQuadratic) {
  const auto tokenizer = MakeTiny({{"a", "b"}});
  std::string text;
  for (int i = 0; i < 500000; ++i) text += "ab";
  EXPECT_EQ(*(*tokenizer)->Encode(text), Ids(500000, 3));
}

TEST(Bpe, BadDefinitionsNameTheProblem) {
  const absl::Status merge = MakeTiny({{"b", "b"}}).status();
  EXPECT_EQ(merge.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_NE(std::string(merge.message()).find("'bb' is not in the vocabulary"), std::string::npos) << merge;
  EXPECT_EQ(Vocabulary::Make({{"a", 0}, {"b", 0}}, {}, "f").status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(Vocabulary::Make({{"a", 0}}, {{1, "a", true}}, "f").status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(Vocabulary::Make({{"a", -1}}, {}, "f").status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(Vocabulary::Make({{"a", INT32_MAX}}, {}, "f").status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(Vocabulary::Make({}, {{0, "", true}}, "f").status().code(), absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace membank
