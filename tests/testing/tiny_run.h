// What a tiny training run needs: the anchor of tiny_anchor.py, a packed corpus of made-up tokens, a bank's spec that belongs to both.
#pragma once

#include <cstdlib>
#include <filesystem>
#include <random>
#include <string>
#include <vector>

#include "common/bank/bank_spec.h"
#include "common/corpus/packed.h"
#include "common/text/tokenizer.h"
#include "gtest/gtest.h"
#include "model_worker/train/anchor_facts.h"
#include "model_worker/train/options.h"

namespace membank::testing_support {

class TinyRun {
 public:
  TinyRun() {
    std::string name = ::testing::TempDir() + "/membank-run-XXXXXX";
    path_ = mkdtemp(name.data());
    const char* source = std::getenv("MEMBANK_SOURCE_DIR");
    EXPECT_NE(source, nullptr) << "run it through ctest, or set MEMBANK_SOURCE_DIR";
    EXPECT_EQ(std::system((std::string("python3 ") + source + "/tests/testing/tiny_anchor.py " + anchor()).c_str()), 0);
    const auto facts = ReadAnchorFacts(anchor());
    EXPECT_TRUE(facts.ok()) << facts.status();
    const auto tokenizer = LoadTokenizer(anchor());
    EXPECT_TRUE(tokenizer.ok()) << tokenizer.status();
    info_.tokenizer_hash = (*tokenizer)->Fingerprint();
    info_.tree_fingerprint = "00112233445566778899aabbccddeeff";
    info_.fan_out = 2;
    info_.depth = 2;
    info_.sequence_length = 64;
    info_.vocab_size = static_cast<uint32_t>((*tokenizer)->vocab_size());
    spec_.bank_id = "tiny";
    spec_.fan_out = info_.fan_out;
    spec_.widths = {4, 2};
    spec_.SetAnchor(facts->shape);
    spec_.dtype = DType::kF32;
    spec_.seed = 7;
    spec_.anchor_fingerprint = facts->fingerprint;
    spec_.tree_fingerprint = info_.tree_fingerprint;
  }
  ~TinyRun() { std::filesystem::remove_all(path_); }

  const std::string& path() const { return path_; }
  std::string anchor() const { return path_ + "/anchor"; }
  std::string corpus() const { return path_ + "/corpus"; }
  BankSpec& spec() { return spec_; }
  PackedInfo& info() { return info_; }

  void WriteCorpus(const std::vector<PackedSequence>& sequences) {
    const absl::Status status = WritePackedCorpus(corpus(), info_, sequences);
    EXPECT_TRUE(status.ok()) << status;
  }

  // `count` sequences of one to three documents, spread over all leaves.
  static std::vector<PackedSequence> RandomSequences(int count, uint32_t leaves) {
    std::mt19937 random(11);
    std::vector<PackedSequence> sequences;
    for (int i = 0; i < count; ++i) {
      PackedSequence sequence;
      sequence.leaf = i % leaves;
      const int documents = 1 + static_cast<int>(random() % 3);
      for (int d = 0; d < documents; ++d) {
        const int length = 2 + static_cast<int>(random() % 14);
        for (int t = 0; t + 1 < length; ++t) sequence.tokens.push_back(3 + static_cast<int32_t>(random() % 256));
        sequence.tokens.push_back(0);
        sequence.document_ends.push_back(static_cast<uint32_t>(sequence.tokens.size()));
      }
      sequences.push_back(std::move(sequence));
    }
    return sequences;
  }

  // A short run in fp32; the generic memory only where a test asks for it.
  TrainOptions Options(const std::string& output) const {
    TrainOptions options;
    options.anchor_path = anchor();
    options.corpus_path = corpus();
    options.output = path_ + "/" + output;
    options.steps = 12;
    options.batch_sequences = 4;
    options.learning_rate = 1e-2;
    options.min_learning_rate = 1e-3;
    options.warmup_steps = 2;
    options.generic_probability = 0;
    options.dtype = DType::kF32;
    options.seed = 3;
    options.checkpoint_every = 5;
    options.threads = 1;
    return options;
  }

 private:
  std::string path_;
  BankSpec spec_;
  PackedInfo info_;
};

}  // namespace membank::testing_support
