#include "common/text/added_tokens.h"

#include "fmt/format.h"
#include "gtest/gtest.h"

namespace membank {
namespace {

// "a[1]b": plain text and ids.
std::string Cut(const AddedTokens& tokens, std::string_view text, bool parse_special = true) {
  std::string result;
  for (const AddedTokens::Segment& segment : tokens.Split(text, parse_special)) {
    result += segment.id < 0 ? std::string(segment.text) : fmt::format("[{}]", segment.id);
  }
  return result;
}

TEST(AddedTokens, TheLeftmostAndLongestIsFound) {
  const AddedTokens tokens({{.id = 1, .content = "<x>", .special = true}, {.id = 2, .content = "<x><x>"}, {.id = 3, .content = "x><"}});
  EXPECT_EQ(Cut(tokens, "a<x>b"), "a[1]b");
  EXPECT_EQ(Cut(tokens, "<x><x><x>"), "[2][1]");
  EXPECT_EQ(Cut(tokens, "x><x>"), "[3]x>");
  EXPECT_EQ(Cut(tokens, "<x", true), "<x");
  EXPECT_EQ(Cut(tokens, "", true), "");
  // A special token that is not asked for still covers its text, as in Hugging Face's tokenizers.
  EXPECT_EQ(Cut(tokens, "<x>< <x><x>", false), "<x>< [2]");
}

TEST(AddedTokens, WhiteSpaceAroundATokenBelongsToIt) {
  const AddedTokens tokens({{.id = 1, .content = "<m>", .lstrip = true}, {.id = 2, .content = "<n>", .rstrip = true}});
  EXPECT_EQ(Cut(tokens, "a \t\xe3\x80\x80<m> b"), "a[1] b");   // U+3000
  EXPECT_EQ(Cut(tokens, "a <n> \n\xc2\xa0""b"), "a [2]b");     // U+00A0
  EXPECT_EQ(Cut(tokens, "<n>  <m>"), "[2][1]");
  EXPECT_EQ(Cut(tokens, "  <m>"), "[1]");
}

TEST(AddedTokens, ASingleWordStandsAlone) {
  const AddedTokens tokens({{.id = 1, .content = "word", .single_word = true}});
  EXPECT_EQ(Cut(tokens, "word, word.word"), "[1], [1].[1]");
  EXPECT_EQ(Cut(tokens, "words sword word_ word1 word\xc3\xa9 \xe4\xb8\xadword"), "words sword word_ word1 word\xc3\xa9 \xe4\xb8\xadword");
}

TEST(AddedTokens, APatternStandsForTheContent) {
  const AddedTokens tokens({{.id = 1, .content = "A", .normalized = true, .pattern = "a"}});
  EXPECT_EQ(Cut(tokens, "Aa"), "A[1]");
}

}  // namespace
}  // namespace membank
