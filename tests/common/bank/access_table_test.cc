#include "common/bank/access_table.h"

#include <random>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace membank {
namespace {

constexpr uint32_t kFanOut = 3, kDepth = 3;

TreePrefix At(const std::string& text) {
  const auto prefix = ParsePrefix(text, kFanOut, kDepth);
  EXPECT_TRUE(prefix.ok()) << prefix.status();
  return *prefix;
}

TEST(TreePrefix, TextThereAndBack) {
  for (const char* text : {"root", "0", "2", "1.2", "2.0.1"}) EXPECT_EQ(ToString(At(text), kFanOut), text);
  EXPECT_EQ(At("1.2"), (TreePrefix{2, 5}));
  for (const char* bad : {"", "3", "1.", ".1", "1.1.1.1", "generic", "none", "-1", "Root", "1 2"}) {
    const auto prefix = ParsePrefix(bad, kFanOut, kDepth);
    EXPECT_EQ(prefix.status().code(), absl::StatusCode::kInvalidArgument) << bad;
    EXPECT_THAT(std::string(prefix.status().message()), testing::HasSubstr("numbers 0..2 joined by dots")) << bad;
  }
}

TEST(TreePrefix, CoversItsNodeAndWhatLiesBelow) {
  EXPECT_TRUE(At("1").Covers({1, 1}, kFanOut));
  EXPECT_TRUE(At("1").Covers({3, 17}, kFanOut));
  EXPECT_FALSE(At("1").Covers({3, 18}, kFanOut));
  EXPECT_FALSE(At("1.2").Covers({1, 1}, kFanOut)) << "the parent's block serves other children, too";
  EXPECT_FALSE(At("2").Covers(GenericBlock(kFanOut, 1), kFanOut));
  EXPECT_TRUE(At("root").Covers(GenericBlock(kFanOut, 2), kFanOut));
}

// Random tables against the definition: every prefix is asked whether it covers the block.
TEST(AccessTable, DecidesAsDefined) {
  std::mt19937 random(5);
  int owned = 0, blocked = 0, blocks = 0;
  for (int round = 0; round < 200; ++round) {
    AccessTable table;
    for (int n = 0; n < 6; ++n) {
      const uint32_t level = random() % (kDepth + 1);
      const TreePrefix prefix{level, static_cast<uint32_t>(random() % ClusterCount(kFanOut, level))};
      if (random() % 2 == 0) table.SetOwner(prefix, "owner" + std::to_string(random() % 3), {"reader"});
      else table.SetBlocked(prefix, random() % 2 == 0);
    }
    for (uint32_t level = 1; level <= kDepth; ++level) {
      for (uint32_t cluster = 0; cluster <= ClusterCount(kFanOut, level); ++cluster) {
        const BlockId id{level, cluster};
        const AccessRule* expected = nullptr;
        bool expect_blocked = false;
        for (const auto& [prefix, rule] : table.rules) {  // ascending levels: the last that covers is the longest
          if (!prefix.Covers(id, kFanOut)) continue;
          if (!rule.owner.empty()) expected = &rule;
          expect_blocked |= rule.blocked;
        }
        ASSERT_EQ(table.OwnerRule(id, kFanOut), expected) << ToString(id);
        ASSERT_EQ(table.IsBlocked(id, kFanOut), expect_blocked) << ToString(id);
        owned += expected != nullptr;
        blocked += expect_blocked;
        ++blocks;
      }
    }
    const auto copy = AccessTable::FromJson(table.ToJson());
    ASSERT_TRUE(copy.ok()) << copy.status();
    ASSERT_EQ(*copy, table);
  }
  EXPECT_GT(owned, blocks / 10);
  EXPECT_GT(blocked, blocks / 10);
  EXPECT_LT(blocked, blocks);
}

TEST(AccessTable, RulesThatSayNothingGo) {
  AccessTable table;
  table.SetOwner(At("1"), "a", {"b"});
  table.SetBlocked(At("1"), true);
  table.SetOwner(At("1"), "", {});
  EXPECT_EQ(table.rules.size(), 1u);
  table.SetBlocked(At("1"), false);
  EXPECT_TRUE(table.rules.empty());
}

TEST(AccessTable, RefusesNonsense) {
  const auto invalid = [](TreePrefix prefix, AccessRule rule) {
    AccessTable table;
    table.rules[prefix] = std::move(rule);
    return table.Validate(kFanOut, kDepth).code() == absl::StatusCode::kInvalidArgument;
  };
  EXPECT_TRUE(invalid({1, 3}, {"a", {}, false}));
  EXPECT_TRUE(invalid({4, 0}, {"a", {}, false}));
  EXPECT_TRUE(invalid({1, 0}, {"", {"r"}, false})) << "readers without an owner";
  EXPECT_TRUE(invalid({1, 0}, {std::string(513, 'x'), {}, false}));
  EXPECT_FALSE(invalid({0, 0}, {"a", {"r"}, true}));
  for (const char* bad : {"", "[]", "{}", R"({"epoch":-1,"rules":[]})", R"({"epoch":1,"rules":[{"level":1,"cluster":0,"owner":1,"readers":[],"blocked":true}]})",
                          R"({"epoch":1,"rules":[{"level":1,"cluster":0,"owner":"","readers":[],"blocked":true},)"
                          R"({"level":1,"cluster":0,"owner":"","readers":[],"blocked":true}]})"}) {
    EXPECT_EQ(AccessTable::FromJson(bad).status().code(), absl::StatusCode::kInvalidArgument) << bad;
  }
}

}  // namespace
}  // namespace membank
