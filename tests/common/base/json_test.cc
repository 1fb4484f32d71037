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
  const std::string damaged(ParseJson("{\"a\": \"\xb6\"}").status().message());
  EXPECT_NE(damaged.find("last read: '\"\\xb6'"), std::string::npos) << damaged;
  EXPECT_LT(ParseJson("\"" + std::string(1 << 20, 'x')).status().message().size(), 500u);  // a string that does not end
}

TEST(Json, WhatIsNoObjectIsNamedWithItsPlace) {
  EXPECT_EQ(*ParseJsonObject("{\"a\": 1}", "f"), nlohmann::json({{"a", 1}}));
  EXPECT_EQ(ParseJsonObject("[1]", "config.json").status().message(), "config.json is not a JSON object but a JSON array");
  const auto parsed = ParseJsonObject("{\"a\": 1,}", "config.json");
  EXPECT_EQ(parsed.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(parsed.status().message()), testing::StartsWith("config.json is not a JSON object: "));
  EXPECT_THAT(std::string(parsed.status().message()), testing::HasSubstr("column 9"));
}

}  // namespace
}  // namespace membank
