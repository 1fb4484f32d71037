#include "common/base/file.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>

namespace membank {
namespace {

class FileTest : public ::testing::Test {
 protected:
  FileTest() : directory_(testing::TempDir() + "/file_test." + std::to_string(::getpid())) {
    std::filesystem::create_directories(directory_);
  }
  ~FileTest() override { std::filesystem::remove_all(directory_); }
  const std::string directory_;
};

TEST_F(FileTest, AtomicWriteReplacesTheWholeFileAndLeavesNoTemporary) {
  const std::string path = directory_ + "/a";
  ASSERT_TRUE(WriteFileAtomic(path, "first").ok());
  ASSERT_TRUE(WriteFileAtomic(path, "second, longer").ok());
  EXPECT_EQ(*ReadFile(path), "second, longer");
  EXPECT_FALSE(std::filesystem::exists(path + ".tmp"));
}

TEST_F(FileTest, ErrorsNameThePath) {
  const std::string missing = directory_ + "/none/b";
  EXPECT_EQ(ReadFile(missing).status().code(), absl::StatusCode::kNotFound);
  EXPECT_NE(ReadFile(missing).status().message().find(missing), absl::string_view::npos);
  EXPECT_FALSE(WriteFileAtomic(missing, "x").ok());
  EXPECT_FALSE(MappedFile::Open(directory_).ok());
}

TEST_F(FileTest, MapsFilesOfAnySize) {
  ASSERT_TRUE(WriteFileAtomic(directory_ + "/empty", "").ok());
  EXPECT_EQ((*MappedFile::Open(directory_ + "/empty"))->bytes().size(), 0u);
  ASSERT_TRUE(WriteFileAtomic(directory_ + "/c", std::string(100000, 'x')).ok());
  auto file = MappedFile::Open(directory_ + "/c");
  ASSERT_TRUE(file.ok());
  EXPECT_EQ((*file)->bytes().size(), 100000u);
  EXPECT_EQ((*file)->bytes()[99999], 'x');
}

}  // namespace
}  // namespace membank
