#include "cli/asking.h"

#include "gmock/gmock.h"

namespace membank {
namespace {

using ::testing::HasSubstr;

TEST(SetPathsTest, OfTheFirstBankOrOfABankByName) {
  MemoryChoice memory;
  ASSERT_TRUE(SetPaths({"3.5", "private=0.1"}, &memory).ok());
  EXPECT_EQ(memory.path, "3.5");
  EXPECT_EQ(memory.paths, (std::map<std::string, std::string>{{"private", "0.1"}}));
  ASSERT_TRUE(SetPaths({"other=1"}, &memory).ok());
  EXPECT_EQ(memory.path, "") << "what was there is replaced";
  EXPECT_EQ(memory.paths, (std::map<std::string, std::string>{{"other", "1"}}));
  EXPECT_THAT(std::string(SetPaths({"3.5", "3.6"}, &memory).message()), HasSubstr("path '3.6' is the second one for its bank, after '3.5'"));
  EXPECT_THAT(std::string(SetPaths({"a=1", "a=2"}, &memory).message()), HasSubstr("path 'a=2' is the second one"));
}

TEST(DescribeTest, EachBankAndWhyOneIsMissing) {
  RouterGenerateReply reply;
  reply.memory.path_text = "3.5";
  reply.memory.bank_id = "public";
  reply.memory.bank_version = "v7";
  reply.memory.blocks = {{1, 3}, {2, 29}};
  reply.memory.distances = {0.5f, 0.25f};
  reply.completion_tokens = 12;
  EXPECT_EQ(Describe(reply), "path 3.5 (blocks 1/3 2/29, distances 0.50 0.25), bank public version v7, 12 tokens in 0.0 s");
  MemoryReport& stacked = reply.memory.stacked.emplace_back();
  stacked.path_text = "0.1";
  stacked.bank_id = "private";
  stacked.no_rights = true;
  EXPECT_THAT(Describe(reply), HasSubstr("version v7; path 0.1, bank private version (live head), left out: the worker may not read it, 12 tokens"));
}

}  // namespace
}  // namespace membank
