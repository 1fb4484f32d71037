// The step log as files: what comes back after a cut, after a crash at every byte, and after damage at every place.
#include "memory_server/step_log.h"

#include <gtest/gtest.h>

#include <fstream>

#include "common/base/file.h"
#include "memory_server/step_log_record.h"
#include "tests/memory_server/shard_fixture.h"

namespace membank {
namespace {

namespace fs = std::filesystem;

class StepLogTest : public ::testing::Test {
 protected:
  StepLogTest() : directory_(testing::TempDir() + "/steplog." + std::to_string(::getpid())) { fs::remove_all(directory_); }
  ~StepLogTest() override { fs::remove_all(directory_); }

  void Open() {
    log_.reset();
    auto log = StepLog::Open(directory_, "hash");
    ASSERT_OK(log);
    log_ = *std::move(log);
  }

  RankGradients Gradients(uint64_t step) const {
    RankGradients gradients;
    for (uint32_t cluster = 0; cluster < 1 + step % 3; ++cluster) {
      if (cluster == purged_cluster_) continue;
      Gradient gradient{cluster % 2 == 0 ? DType::kF32 : DType::kBF16, Buffer(12 + 4 * cluster)};
      std::fill_n(gradient.bytes.data(), gradient.bytes.size(), static_cast<uint8_t>(step + cluster));
      gradients.emplace(BlockId{1, cluster}, std::move(gradient));
    }
    return gradients;
  }
  static RunSettings Run() { return {"run \"1\"", 3, 2, 1, 1, OptimizerKind::kSgd, 0.9f, 0.95f, 1e-8f, DecayPolicy::kMissed, true}; }
  static ApplyParameters Parameters(uint64_t step) { return {0.1f * static_cast<float>(step), 1e-3f / static_cast<float>(step), 0.3f}; }
  static LogBase Base(uint64_t step) { return step == 0 ? LogBase() : LogBase{"c" + std::to_string(step), {step, "run \"1\"", 3}}; }

  // A log of steps 1 to 3; `ends`: its bytes before the first and after each.
  void WriteThree(std::vector<uint64_t>* ends) {
    Open();
    ASSERT_OK(log_->Begin(Base(0), false));
    ends->push_back(log_->bytes());
    for (uint64_t step = 1; step <= 3; ++step) {
      Write(step);
      ends->push_back(log_->bytes());
    }
  }
  void Write(uint64_t step) {
    ASSERT_OK(log_->WriteGradients(Run(), step, Gradients(step)));
    ASSERT_OK(log_->WriteApply(step, Parameters(step)));
  }

  // Opens and replays; every step that comes must be what was written. The last one, or the error.
  absl::StatusOr<uint64_t> Reopen(const LogBase& base, uint64_t last_step = ~uint64_t{0}) {
    log_.reset();
    auto log = StepLog::Open(directory_, "hash");
    if (!log.ok()) return log.status();
    log_ = *std::move(log);
    uint64_t head = base.marks.step;
    const absl::Status replayed = log_->Replay(base, last_step, [&](const LoggedStep& logged) {
      EXPECT_EQ(logged.step, ++head);
      EXPECT_EQ(logged.run, Run());
      const ApplyParameters expected = Parameters(head);
      EXPECT_EQ(logged.parameters.scale, expected.scale);
      EXPECT_EQ(logged.parameters.learning_rate, expected.learning_rate);
      EXPECT_EQ(logged.parameters.weight_decay, expected.weight_decay);
      const RankGradients gradients = Gradients(head);
      EXPECT_EQ(logged.gradients.size(), gradients.size());
      for (const auto& [id, gradient] : gradients) {
        const Gradient& got = logged.gradients.at(id);
        EXPECT_EQ(got.dtype, gradient.dtype);
        EXPECT_EQ(got.bytes.span(), gradient.bytes.span());
      }
      return absl::OkStatus();
    });
    if (!replayed.ok()) return replayed;
    return head;
  }

  std::vector<std::string> Files() const {
    std::vector<std::string> files;
    for (const auto& entry : fs::directory_iterator(directory_)) files.push_back(entry.path());
    std::sort(files.begin(), files.end());
    return files;
  }

  const std::string directory_;
  std::unique_ptr<StepLog> log_;
  uint32_t purged_cluster_ = ~uint32_t{0};
};

TEST_F(StepLogTest, StepsComeBackAndTheLogGoesOn) {
  ASSERT_EQ(*Reopen(Base(0)), 0u);
  ASSERT_OK(log_->Begin(Base(0), false));
  for (uint64_t step = 1; step <= 3; ++step) Write(step);
  ASSERT_EQ(*Reopen(Base(0)), 3u);
  for (uint64_t step = 4; step <= 5; ++step) Write(step);
  ASSERT_EQ(*Reopen(Base(0)), 5u);
}

TEST_F(StepLogTest, OnlyTheNewestGradientsOfAStepCountAndOnlyWhenApplied) {
  Open();
  ASSERT_OK(log_->Begin(Base(0), false));
  ASSERT_OK(log_->WriteGradients(Run(), 1, Gradients(7)));  // of an epoch that ended before the step was applied
  Write(1);
  ASSERT_OK(log_->WriteGradients(Run(), 2, Gradients(2)));
  ASSERT_EQ(*Reopen(Base(0)), 1u);
  Write(2);
  ASSERT_EQ(*Reopen(Base(0)), 2u);
}

TEST_F(StepLogTest, SegmentsFollowCutsAndGoWithThem) {
  Open();
  ASSERT_OK(log_->Begin(Base(0), false));
  Write(1);
  Write(2);
  ASSERT_OK(log_->Begin(Base(2), true));
  Write(3);
  EXPECT_EQ(Files().size(), 2u);
  ASSERT_EQ(*Reopen(Base(0)), 3u);  // the cut was prepared, but never committed
  EXPECT_EQ(Files().size(), 2u);
  ASSERT_OK(log_->RemoveBefore(Base(2)));
  EXPECT_EQ(Files().size(), 1u);
  ASSERT_EQ(*Reopen(Base(2)), 3u);
  ASSERT_OK(log_->Begin(Base(2), false));  // restored: step 3 is given up
  EXPECT_EQ(Files().size(), 1u);
  ASSERT_EQ(*Reopen(Base(2)), 2u);
  ASSERT_EQ(*Reopen(Base(5)), 5u);  // another cut is the last one: what leads elsewhere goes
  EXPECT_TRUE(log_->empty());
  EXPECT_TRUE(Files().empty());
}

TEST_F(StepLogTest, ReplayUpToAStepGivesUpTheRest) {
  Open();
  ASSERT_OK(log_->Begin(Base(0), false));
  for (uint64_t step = 1; step <= 4; ++step) Write(step);
  ASSERT_OK(log_->Begin(Base(4), true));
  Write(5);
  ASSERT_EQ(*Reopen(Base(0), 4), 4u);
  EXPECT_EQ(Files().size(), 1u);
  ASSERT_EQ(*Reopen(Base(0), 2), 2u);
  Write(3);
  ASSERT_EQ(*Reopen(Base(0)), 3u);
}

TEST_F(StepLogTest, ACrashAtEveryByteKeepsEveryStepThatWasWhole) {
  std::vector<uint64_t> ends;
  WriteThree(&ends);
  const std::string file = Files().at(0), whole = *ReadFile(file);
  ASSERT_EQ(whole.size(), ends.back());
  for (size_t bytes = 0; bytes <= whole.size(); ++bytes) {
    fs::create_directories(directory_);
    std::ofstream(file, std::ios::binary) << whole.substr(0, bytes);
    const uint64_t expected = std::upper_bound(ends.begin(), ends.end(), bytes) - ends.begin();
    const auto got = Reopen(Base(0));
    ASSERT_OK(got);
    ASSERT_EQ(*got, expected == 0 ? 0 : expected - 1) << bytes;
    if (expected == 0) ASSERT_TRUE(Files().empty()) << bytes;
    else ASSERT_EQ(fs::file_size(file), ends[expected - 1]) << bytes;
  }
}

TEST_F(StepLogTest, DamageBeforeALaterStepIsDataLossAndChangesNothing) {
  std::vector<uint64_t> ends;
  WriteThree(&ends);
  const std::string file = Files().at(0), whole = *ReadFile(file);
  int lost = 0;
  for (size_t at = 0; at < whole.size(); ++at) {
    std::string damaged = whole;
    damaged[at] = static_cast<char>(damaged[at] ^ 0x20);
    std::ofstream(file, std::ios::binary) << damaged;
    const auto got = Reopen(Base(0));
    const bool last = at >= ends[2];  // nothing later proves that step 3 was acknowledged
    if (got.ok()) {
      // Padding is in no checksum.
      const bool padding = whole[at] == '\0';
      ASSERT_TRUE(*got == 3 ? padding : last && *got == 2) << "byte " << at << ": " << *got;
      continue;
    }
    ++lost;
    ASSERT_FALSE(last) << at;
    ASSERT_EQ(got.status().code(), absl::StatusCode::kDataLoss) << got.status();
    ASSERT_NE(std::string(got.status().message()).find(file), std::string::npos) << got.status();
    ASSERT_EQ(*ReadFile(file), damaged);
  }
  EXPECT_GT(lost, static_cast<int>(ends[2]) * 9 / 10);
}

TEST_F(StepLogTest, APurgeKeepsEveryStepWithoutTheBlocksThatGo) {
  const auto covered = [](BlockId id) { return id.cluster == 1; };
  Open();
  ASSERT_OK(log_->Begin(Base(0), false));
  for (uint64_t step = 1; step <= 2; ++step) Write(step);
  ASSERT_OK(log_->Begin(Base(2), true));
  Write(3);
  ASSERT_OK(log_->WriteGradients(Run(), 4, Gradients(4)));  // prepared
  ASSERT_OK(log_->Purge(covered));
  purged_cluster_ = 1;
  ASSERT_OK(log_->WriteApply(4, Parameters(4)));
  Write(5);
  EXPECT_EQ(Files().size(), 2u);
  ASSERT_EQ(*Reopen(Base(0)), 5u);

  // At a start, with a torn tail: it goes, and with it what it held.
  const std::string file = Files().at(1), whole = *ReadFile(file);
  std::ofstream(file, std::ios::binary) << whole.substr(0, whole.size() - 1);
  Open();
  ASSERT_OK(log_->Purge(covered));
  ASSERT_EQ(*Reopen(Base(0)), 4u);
  // Damage is not taken for one.
  std::string damaged = whole;
  damaged[damaged.size() / 3] ^= 1;
  std::ofstream(file, std::ios::binary) << damaged;
  Open();
  EXPECT_CODE(log_->Purge(covered), kDataLoss, file);
  EXPECT_EQ(*ReadFile(file), damaged);
  EXPECT_EQ(Files().size(), 2u) << "no leftovers";
}

TEST_F(StepLogTest, AMissingSegmentIsDataLoss) {
  Open();
  ASSERT_OK(log_->Begin(Base(0), false));
  Write(1);
  ASSERT_OK(log_->Begin(Base(1), true));
  Write(2);
  ASSERT_OK(log_->Begin(Base(2), true));
  Write(3);
  const std::vector<std::string> files = Files();
  fs::resize_file(files[1], fs::file_size(files[1]) - 8);
  EXPECT_CODE(Reopen(Base(0)), kDataLoss, "up to 1 and from 3 on");
  fs::remove(files[1]);
  EXPECT_CODE(Reopen(Base(0)), kDataLoss, "up to 1 and from 3 on");
}

TEST_F(StepLogTest, RefusesTheLogOfAnotherBank) {
  Open();
  ASSERT_OK(log_->Begin(Base(0), false));
  EXPECT_CODE(StepLog::Open(directory_, "other"), kFailedPrecondition, "this bank's is other");
}

}  // namespace
}  // namespace membank
