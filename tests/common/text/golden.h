// What the tests of tokenizers share: loading, random text, the comparison with the references' ids in tests/golden/tokenizers.
#pragma once

#include <fstream>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "common/text/tokenizer.h"
#include "common/text/utf8.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "tests/common/tensors/damage.h"

namespace membank {

using Ids = std::vector<int32_t>;

inline std::string Golden(const std::string& name) { return SourcePath("tests/golden/tokenizers/" + name); }

inline std::unique_ptr<Tokenizer> Load(const std::string& path) {
  auto tokenizer = LoadTokenizer(path);
  EXPECT_TRUE(tokenizer.ok()) << tokenizer.status();
  return tokenizer.ok() ? *std::move(tokenizer) : nullptr;
}

// Broken sequences become U+FFFD, as Hugging Face's decoder (Rust's from_utf8_lossy) has it.
inline std::string Lossy(std::string_view text) {
  std::string out;
  while (!text.empty()) {
    const Utf8Sequence next = NextUtf8(text);
    if (next.kind == Utf8Sequence::kValid) {
      out += text.substr(0, next.length);
    } else {
      out += "\xef\xbf\xbd";
    }
    text.remove_prefix(next.length);
  }
  return out;
}

inline void ExpectGolden(const Tokenizer& tokenizer, const std::string& golden) {
  std::ifstream lines(Golden(golden));
  int count = 0;
  for (std::string line; std::getline(lines, line); ++count) {
    const nlohmann::json expected = nlohmann::json::parse(line);
    const std::string text = expected["text"];
    const bool has_special = expected.contains("special");   // SentencePiece never parses special tokens
    const auto special = tokenizer.Encode(text, has_special), plain = tokenizer.Encode(text, false);
    ASSERT_TRUE(special.ok() && plain.ok());
    EXPECT_EQ(*plain, expected["plain"].get<Ids>()) << golden << ": " << text;
    if (has_special) {
      EXPECT_EQ(*special, expected["special"].get<Ids>()) << golden << ": " << text;
    }
    if (expected.contains("decoded")) {
      EXPECT_EQ(Lossy(*tokenizer.Decode(*special)), expected["decoded"]) << golden << ": " << text;
    }
    if (expected.contains("decoded_all")) {
      EXPECT_EQ(Lossy(*tokenizer.Decode(*special, false)), expected["decoded_all"]) << golden << ": " << text;
    }
  }
  EXPECT_GT(count, 80) << golden;
}

// Valid UTF-8 from all planes, short characters more often.
inline std::string RandomText(std::mt19937& random, int characters) {
  std::string text;
  const uint32_t limits[] = {0x80, 0x80, 0x800, 0x10000, 0x110000};
  while (characters > 0) {
    const uint32_t c = random() % limits[random() % 5];
    if (c >= 0xd800 && c < 0xe000) continue;
    AppendUtf8(c, text);
    --characters;
  }
  return text;
}

}  // namespace membank
