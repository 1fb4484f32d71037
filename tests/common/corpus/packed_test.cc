#include "common/corpus/packed.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <random>

namespace membank {
namespace {

using ::testing::HasSubstr;

class PackedTest : public ::testing::Test {
 protected:
  PackedTest() : directory_(testing::TempDir() + "/packed_test." + std::to_string(::getpid())) {}
  ~PackedTest() override { std::filesystem::remove_all(directory_); }

  static PackedInfo Info(uint32_t vocab_size) {
    PackedInfo info;
    info.tokenizer_hash = "t";
    info.tree_fingerprint = "f";
    info.fan_out = 8;
    info.depth = 2;
    info.sequence_length = 128;
    info.vocab_size = vocab_size;
    return info;
  }

  static std::vector<PackedSequence> Sequences(int count, uint32_t vocab_size) {
    std::mt19937 random(1);
    std::vector<PackedSequence> sequences(count);
    for (PackedSequence& sequence : sequences) {
      sequence.leaf = random() % 64;
      for (uint32_t documents = 1 + random() % 4; documents > 0; --documents) {
        for (uint32_t tokens = 1 + random() % 30; tokens > 0; --tokens) sequence.tokens.push_back(random() % vocab_size);
        sequence.document_ends.push_back(sequence.tokens.size());
      }
    }
    return sequences;
  }

  const std::string directory_;
};

TEST_F(PackedTest, ReadsBackWhatWasWrittenInOrder) {
  for (const uint32_t vocab_size : {49152u, 200000u}) {  // 2 and 4 bytes per token
    std::filesystem::remove_all(directory_);
    const auto sequences = Sequences(50, vocab_size);
    ASSERT_TRUE(WritePackedCorpus(directory_, Info(vocab_size), sequences, 16).ok());
    auto corpus = PackedCorpus::Open(directory_);
    ASSERT_TRUE(corpus.ok()) << corpus.status();
    ASSERT_EQ((*corpus)->size(), 50u);
    EXPECT_EQ((*corpus)->info().tokenizer_hash, "t");
    uint64_t tokens = 0;
    for (uint64_t i = 0; i < 50; ++i) {
      auto sequence = (*corpus)->Read(i);
      ASSERT_TRUE(sequence.ok());
      EXPECT_EQ(sequence->leaf, sequences[i].leaf);
      EXPECT_EQ(sequence->tokens, sequences[i].tokens);
      EXPECT_EQ(sequence->document_ends, sequences[i].document_ends);
      tokens += sequence->tokens.size();
    }
    EXPECT_EQ((*corpus)->info().tokens, tokens);
    EXPECT_TRUE(std::filesystem::exists(directory_ + "/shard-00003.bin"));
    EXPECT_EQ((*corpus)->Read(50).status().code(), absl::StatusCode::kOutOfRange);
  }
}

TEST_F(PackedTest, FingerprintFollowsTheContents) {
  const auto sequences = Sequences(5, 100);
  ASSERT_TRUE(WritePackedCorpus(directory_ + "/a", Info(100), sequences).ok());
  ASSERT_TRUE(WritePackedCorpus(directory_ + "/b", Info(100), sequences).ok());
  auto changed = sequences;
  changed[2].tokens[0] ^= 1;
  ASSERT_TRUE(WritePackedCorpus(directory_ + "/c", Info(100), changed).ok());
  const std::string fingerprint = (*PackedCorpus::Open(directory_ + "/a"))->Fingerprint();
  EXPECT_EQ((*PackedCorpus::Open(directory_ + "/b"))->Fingerprint(), fingerprint);
  EXPECT_NE((*PackedCorpus::Open(directory_ + "/c"))->Fingerprint(), fingerprint);
}

TEST_F(PackedTest, RefusesSequencesThatBreakTheRules) {
  const auto write = [&](PackedSequence sequence) { return WritePackedCorpus(directory_, Info(100), {sequence}); };
  EXPECT_THAT(std::string(write({64, {1, 2}, {2}}).message()), HasSubstr("leaf 64 is outside 0..63"));
  EXPECT_THAT(std::string(write({0, {1, 200}, {2}}).message()), HasSubstr("token id 200 is outside 0..99"));
  EXPECT_THAT(std::string(write({0, {1, 2}, {1}}).message()), HasSubstr("the last document ends at 1 of 2 tokens"));
  EXPECT_THAT(std::string(write({0, {1, 2}, {2, 2}}).message()), HasSubstr("ends must ascend"));
  EXPECT_THAT(std::string(write({0, std::vector<int32_t>(129, 1), {129}}).message()), HasSubstr("129 tokens; allowed are 1..128"));
  EXPECT_EQ(write({0, {}, {}}).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_FALSE(std::filesystem::exists(directory_ + "/index.json"));  // nothing was committed
  EXPECT_EQ(WritePackedCorpus(directory_, Info(100), {}).code(), absl::StatusCode::kInvalidArgument);
}

TEST_F(PackedTest, NeverWritesOverACorpusAndSaysWhenThereIsNone) {
  ASSERT_TRUE(WritePackedCorpus(directory_, Info(100), Sequences(3, 100)).ok());
  EXPECT_EQ(WritePackedCorpus(directory_, Info(100), Sequences(4, 100)).code(), absl::StatusCode::kAlreadyExists);
  EXPECT_EQ((*PackedCorpus::Open(directory_))->size(), 3u);
  auto none = PackedCorpus::Open(directory_ + "/none");
  EXPECT_EQ(none.status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(none.status().message()), HasSubstr("membank corpus build"));
}

// Every truncation and every flipped byte of every file is DATA_LOSS and names the file.
TEST_F(PackedTest, DamageIsDataLoss) {
  ASSERT_TRUE(WritePackedCorpus(directory_, Info(300), Sequences(8, 300), 5).ok());
  for (const std::string name : {"index.json", "shard-00000.bin", "shard-00001.bin"}) {
    const std::string path = directory_ + "/" + name;
    const std::string whole = *ReadFile(path);
    const auto expect_data_loss = [&](const std::string& contents, const std::string& how) {
      std::ofstream(path, std::ios::binary | std::ios::trunc) << contents;  // no fsync: there are many
      auto corpus = PackedCorpus::Open(directory_);
      ASSERT_FALSE(corpus.ok()) << how;
      EXPECT_EQ(corpus.status().code(), absl::StatusCode::kDataLoss) << how << ": " << corpus.status();
      EXPECT_THAT(std::string(corpus.status().message()), HasSubstr(name));
    };
    // The index is compared as JSON: its final newline and white space are not part of it.
    const size_t end = name == "index.json" ? whole.find_last_of('}') + 1 : whole.size();
    for (size_t size = 0; size < end; size += 1 + size / 40) expect_data_loss(whole.substr(0, size), "cut at " + std::to_string(size));
    for (size_t at = 0; at < end; at += name == "index.json" ? 1 : 3) {
      if (std::isspace(static_cast<unsigned char>(whole[at]))) continue;
      std::string flipped = whole;
      flipped[at] ^= static_cast<char>(1 << (at % 7));
      if (name == "index.json" && std::isspace(static_cast<unsigned char>(flipped[at]))) continue;
      expect_data_loss(flipped, "flip at " + std::to_string(at));
    }
    ASSERT_TRUE(WriteFileAtomic(path, whole).ok());
  }
  ASSERT_TRUE(PackedCorpus::Open(directory_).ok());
  std::filesystem::remove(directory_ + "/shard-00001.bin");
  EXPECT_EQ(PackedCorpus::Open(directory_).status().code(), absl::StatusCode::kDataLoss);
}

}  // namespace
}  // namespace membank
