#include "model_worker/train/run_directory.h"

#include <filesystem>
#include <fstream>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace membank {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

class RunDirectoryTest : public ::testing::Test {
 protected:
  RunDirectoryTest() : root_(testing::TempDir() + "/run_directory") {
    std::filesystem::remove_all(root_);
    auto run = RunDirectory::Open(root_);
    EXPECT_TRUE(run.ok()) << run.status();
    run_ = *std::move(run);
  }
  ~RunDirectoryTest() override { std::filesystem::remove_all(root_); }

  std::string File(const std::string& name) const { return run_->CheckpointPath("c1") + "/" + name; }
  void Write(const std::string& name, const std::string& contents) const {
    std::filesystem::create_directories(std::filesystem::path(File(name)).parent_path());
    std::ofstream(File(name), std::ios::binary) << contents;
  }
  std::vector<std::string> Damage() const {
    const auto damage = RunDirectory::Verify(root_, "c1");
    EXPECT_TRUE(damage.ok()) << damage.status();
    return damage.value_or(std::vector<std::string>());
  }

  const std::string root_;
  std::unique_ptr<RunDirectory> run_;
};

TEST_F(RunDirectoryTest, ACheckpointKnowsItsFiles) {
  Write("anchor/model.safetensors", "weights");
  Write("anchor_optimizer.safetensors", "moments");
  const RunCheckpoint checkpoint{"c1", 7, 17, {{"seed", 1}}};
  ASSERT_TRUE(run_->Commit(checkpoint).ok());
  const auto found = run_->Checkpoints();
  ASSERT_TRUE(found.ok()) << found.status();
  ASSERT_EQ(found->size(), 1u);
  EXPECT_EQ((*found)[0].step, 7u);
  EXPECT_EQ((*found)[0].files.size(), 2u);
  EXPECT_EQ((*found)[0].files["anchor/model.safetensors"]["bytes"], 7);
  EXPECT_TRUE(Damage().empty());
  ASSERT_TRUE(run_->Commit(checkpoint).ok());  // the manifest is not one of its files
  EXPECT_TRUE(Damage().empty());

  Write("anchor/model.safetensors", "weightz");
  EXPECT_THAT(Damage(), ElementsAre(HasSubstr(File("anchor/model.safetensors") + " is {\"bytes\":7,\"crc32c\":")));
  Write("anchor/model.safetensors", "weight");
  EXPECT_THAT(Damage(), ElementsAre(HasSubstr("\"bytes\":6")));
  std::filesystem::remove(File("anchor_optimizer.safetensors"));
  EXPECT_THAT(Damage(), ElementsAre(HasSubstr("model.safetensors"), HasSubstr(File("anchor_optimizer.safetensors"))));
}

TEST_F(RunDirectoryTest, WhatWasNeverCommittedIsNotFound) {
  Write("anchor/model.safetensors", "weights");
  EXPECT_TRUE(absl::IsNotFound(RunDirectory::Verify(root_, "c1").status()));
}

}  // namespace
}  // namespace membank
