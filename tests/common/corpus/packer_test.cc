#include "common/corpus/packer.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <random>

namespace membank {
namespace {

TEST(SplitIntoWindows, CoversEveryTokenOnceWithoutShortTails) {
  for (uint32_t tokens = 1; tokens < 700; ++tokens) {
    const auto windows = SplitIntoWindows(tokens, 100);
    uint32_t at = 0;
    for (const WindowRange& window : windows) {
      EXPECT_EQ(window.begin, at);
      EXPECT_LE(window.end - window.begin, 100u);
      if (windows.size() > 1) {
        EXPECT_GE(window.end - window.begin, 50u) << tokens;
      }
      at = window.end;
    }
    EXPECT_EQ(at, tokens);
    EXPECT_EQ(windows.size(), (tokens + 99) / 100);
  }
}

std::vector<Window> SomeWindows() {
  std::mt19937 random(1);
  std::vector<Window> windows;
  for (int32_t i = 0; i < 500; ++i) windows.push_back({static_cast<uint32_t>(random() % 7), std::vector<int32_t>(1 + random() % 64, i)});
  return windows;
}

TEST(PackWindows, EveryWindowOnceInASequenceOfItsLeaf) {
  const std::vector<Window> windows = SomeWindows();
  const auto sequences = PackWindows(windows, 64, 1);
  std::map<int32_t, int> seen;
  size_t tokens = 0;
  for (const PackedSequence& sequence : sequences) {
    EXPECT_LE(sequence.tokens.size(), 64u);
    EXPECT_EQ(sequence.document_ends.back(), sequence.tokens.size());
    uint32_t begin = 0;
    for (const uint32_t end : sequence.document_ends) {
      const int32_t window = sequence.tokens[begin];
      ++seen[window];
      EXPECT_EQ(windows[window].leaf, sequence.leaf);
      EXPECT_EQ(std::vector<int32_t>(sequence.tokens.begin() + begin, sequence.tokens.begin() + end), windows[window].tokens);
      begin = end;
    }
    tokens += sequence.tokens.size();
  }
  EXPECT_EQ(seen.size(), windows.size());
  for (const auto& [window, count] : seen) EXPECT_EQ(count, 1) << window;
  EXPECT_GT(static_cast<double>(tokens) / (64.0 * sequences.size()), 0.9);  // best fit leaves little room
}

TEST(PackWindows, TheSeedDecidesTheOrderAndLeavesAreMixed) {
  const auto a = PackWindows(SomeWindows(), 64, 1), b = PackWindows(SomeWindows(), 64, 1), c = PackWindows(SomeWindows(), 64, 2);
  ASSERT_EQ(a.size(), b.size());
  size_t changes = 0;
  bool differs = a.size() != c.size();
  for (size_t i = 0; i < a.size(); ++i) {
    EXPECT_EQ(a[i].tokens, b[i].tokens);
    differs |= i < c.size() && a[i].tokens != c[i].tokens;
    changes += i > 0 && a[i].leaf != a[i - 1].leaf;
  }
  EXPECT_TRUE(differs);
  EXPECT_GT(changes, a.size() / 2);
}

}  // namespace
}  // namespace membank
