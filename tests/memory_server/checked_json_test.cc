#include "memory_server/checked_json.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>

#include "common/base/file.h"
#include "tests/memory_server/shard_fixture.h"

namespace membank {
namespace {

using Json = nlohmann::json;

class CheckedJsonTest : public ::testing::Test {
 protected:
  ~CheckedJsonTest() override { std::filesystem::remove(path_); }
  const std::string path_ = testing::TempDir() + "/checked." + std::to_string(::getpid()) + ".json";
};

TEST_F(CheckedJsonTest, WhatWasWrittenComesBackAndEveryFlippedBitIsFoundOrHarmless) {
  const Json written = {{"step", 4}, {"run_id", "r \"1\" \u00e4"}, {"blocks", 12}, {"list", {1, 2}}};
  ASSERT_OK(WriteCheckedJson(path_, written));
  ASSERT_OK(ReadCheckedJson(path_));
  EXPECT_EQ(*ReadCheckedJson(path_), written);
  const std::string text = *ReadFile(path_);
  int found = 0;
  for (size_t at = 0; at < text.size(); ++at) {
    for (int bit = 0; bit < 8; ++bit) {
      std::string damaged = text;
      damaged[at] = static_cast<char>(damaged[at] ^ (1 << bit));
      ASSERT_OK(WriteFileAtomic(path_, damaged));
      const auto read = ReadCheckedJson(path_);
      if (read.ok()) {
        ASSERT_EQ(*read, written) << "byte " << at << " bit " << bit;
        continue;
      }
      ++found;
      ASSERT_EQ(read.status().code(), absl::StatusCode::kDataLoss) << read.status();
      ASSERT_NE(std::string(read.status().message()).find(path_), std::string::npos) << read.status();
    }
  }
  EXPECT_GT(found, static_cast<int>(text.size()) * 7) << "of " << text.size() * 8;
}

TEST_F(CheckedJsonTest, AFileWithoutAChecksumOrWithoutAnObjectIsDamaged) {
  for (const char* text : {"", "{", "[1]", "{\"step\": 4}", "{\"step\": 4, \"crc32c\": \"4\"}"}) {
    ASSERT_OK(WriteFileAtomic(path_, text));
    EXPECT_CODE(ReadCheckedJson(path_), kDataLoss, path_);
  }
  std::filesystem::remove(path_);
  EXPECT_FALSE(absl::IsDataLoss(ReadCheckedJson(path_).status()));
}

}  // namespace
}  // namespace membank
