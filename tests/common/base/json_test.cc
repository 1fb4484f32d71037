#include "common/base/json.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace membank {
namespace {

std::string Nested(int depth) { return std::string(depth, '[') + std::string(depth, ']'); }

TEST(Json, NestingIsBounded) {
  EXPECT_TRUE(ParseJson(Nested(kMaxJsonDepth)).ok());
  for (int depth : {kMaxJsonDepth + 1, 1000000}) {
    const auto parsed = ParseJson(Nested(depth));
    EXPECT_EQ(parsed.status().code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(parsed.status().message()), testing::HasSubstr(std::to_string(depth)));
  }
}

TEST(Json, BracketsInsideOfStringsDoNotCount) {
  EXPECT_EQ(JsonDepth(R"({"a[[[[": "{{\"{{\\", "b": [1]})"), 2);
  EXPECT_EQ(JsonDepth("\"[[[\\"), 0);
  EXPECT_EQ(JsonDepth(""), 0);
}

TEST(Json, ErrorsNameTheByte) {
  const auto parsed = ParseJson("{\"a\": 1,}");
  EXPECT_EQ(parsed.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(parsed.status().message()), testing::HasSubstr("column 9"));
  EXPECT_FALSE(ParseJson("\"\xff\"").ok());
}

}  // namespace
}  // namespace membank
