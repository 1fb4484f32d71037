#include "model_worker/serve/text_stream.h"

#include "tests/model_worker/serve/serve_fixture.h"

namespace membank::serve_test {
namespace {

// The text after each byte, then what Finish gives; "!" marks a stop.
std::vector<std::string> Stream(const std::string& text, std::vector<std::string> stop) {
  ByteTokenizer tokenizer;
  TextStream stream(tokenizer, std::move(stop));
  std::vector<std::string> parts;
  for (unsigned char byte : text) {
    parts.push_back(stream.Push(byte).value());
    if (!stream.stopped()) continue;
    parts.back() += "!";
    return parts;
  }
  parts.push_back(stream.Finish());
  return parts;
}

using Parts = std::vector<std::string>;

TEST(TextStreamTest, PassesTextThrough) { EXPECT_EQ(Stream("abc", {}), (Parts{"a", "b", "c", ""})); }

TEST(TextStreamTest, StopStringAcrossTokens) { EXPECT_EQ(Stream("ab\n\ncd", {"\n\n"}), (Parts{"a", "b", "", "!"})); }

TEST(TextStreamTest, HeldTextComesOutWhenItIsNoStop) { EXPECT_EQ(Stream("a\nb", {"\n\n"}), (Parts{"a", "", "\nb", ""})); }

TEST(TextStreamTest, HeldTextComesOutAtTheEnd) { EXPECT_EQ(Stream("aSTO", {"STOP"}), (Parts{"a", "", "", "", "STO"})); }

TEST(TextStreamTest, RepeatedBeginnings) { EXPECT_EQ(Stream("aab", {"ab"}), (Parts{"", "a", "!"})); }

TEST(TextStreamTest, TheEarliestStopCounts) { EXPECT_EQ(Stream("xyz", {"z", "yz"}), (Parts{"x", "", "!"})); }

TEST(TextStreamTest, CharactersStayWhole) {
  EXPECT_EQ(Stream("\xc3\xa9\xe2\x82\xac", {}), (Parts{"", "\xc3\xa9", "", "", "\xe2\x82\xac", ""}));
}

TEST(TextStreamTest, ABrokenEndIsReplaced) { EXPECT_EQ(Stream("a\xe2\x82", {}), (Parts{"a", "", "", "\xef\xbf\xbd"})); }

}  // namespace
}  // namespace membank::serve_test
