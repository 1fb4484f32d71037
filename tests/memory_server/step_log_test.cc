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

SlotSet AllSlots() { return SlotSet().set(); }

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
    ASSERT_OK(log_->Begin(Base(0), AllSlots(), false));
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
    LogReplay replay;
    replay.take = [&](const SlotsTaken& taken, const std::vector<LoggedImage>& images) {
      EXPECT_EQ(taken.marks, Taken().marks);
      EXPECT_EQ(taken.run_epochs, Taken().run_epochs);
      EXPECT_EQ(FormatSlots(taken.slots), FormatSlots(Taken().slots));
      EXPECT_EQ(images.size(), 2u);
      for (uint32_t i = 0; i < images.size(); ++i) {
        const auto image = DecodeImage(spec_, images[i].id, images[i].weights, images[i].state, buffers_);
        EXPECT_TRUE(image.ok()) << image.status();
        EXPECT_EQ(image->id, Image(i).id);
        EXPECT_EQ(image->version, Image(i).version);
        EXPECT_EQ(image->payload->span(), Image(i).payload->span());
        EXPECT_EQ(image->state->m.span(), Image(i).state->m.span());
      }
      taken_at_ = head;
      return absl::OkStatus();
    };
    replay.apply = [&](const LoggedStep& logged) {
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
    };
    taken_at_.reset();
    const absl::StatusOr<SlotSet> owned = log_->Replay(base, slots_, last_step, replay);
    if (!owned.ok()) return owned.status();
    owned_ = *owned;
    return head;
  }

  std::vector<std::string> Files() const {
    std::vector<std::string> files;
    for (const auto& entry : fs::directory_iterator(directory_)) files.push_back(entry.path());
    std::sort(files.begin(), files.end());
    return files;
  }

  static SlotsTaken Taken() { return {{1, "run \"1\"", 3}, *ParseSlots("5,6"), false, {{"run \"1\"", 3}}}; }
  BlockImage Image(uint32_t i) const {
    const std::vector<uint8_t> bytes(spec_.BlockBytes(2), static_cast<uint8_t>(i + 1));
    auto state = std::make_shared<TrainState>(buffers_);
    state->m = Buffer(bytes.size());
    std::copy(bytes.begin(), bytes.end(), state->m.data());
    state->v = Buffer(bytes.size());
    std::fill_n(state->v.data(), bytes.size(), uint8_t{0});
    return {{2, 5 + i}, 1, Crc32c(bytes.data(), bytes.size()), CopyPayload(bytes, buffers_.get()), std::move(state)};
  }
  void WriteImages() {
    for (uint32_t i = 0; i < 2; ++i) ASSERT_OK(log_->WriteImage(Image(i)));
  }

  const BankSpec spec_ = SmallSpec();
  const std::shared_ptr<BufferPool> buffers_ = BufferPool::Create(0);
  const std::string directory_;
  std::unique_ptr<StepLog> log_;
  SlotSet slots_ = AllSlots();            // the server's, as replays are told
  SlotSet owned_;                         // as the last replay said
  std::optional<uint64_t> taken_at_;      // the step after which slots were taken in the last replay
  uint32_t purged_cluster_ = ~uint32_t{0};
};

TEST_F(StepLogTest, StepsComeBackAndTheLogGoesOn) {
  ASSERT_EQ(*Reopen(Base(0)), 0u);
  ASSERT_OK(log_->Begin(Base(0), AllSlots(), false));
  for (uint64_t step = 1; step <= 3; ++step) Write(step);
  ASSERT_EQ(*Reopen(Base(0)), 3u);
  for (uint64_t step = 4; step <= 5; ++step) Write(step);
  ASSERT_EQ(*Reopen(Base(0)), 5u);
}

TEST_F(StepLogTest, OnlyTheNewestGradientsOfAStepCountAndOnlyWhenApplied) {
  Open();
  ASSERT_OK(log_->Begin(Base(0), AllSlots(), false));
  ASSERT_OK(log_->WriteGradients(Run(), 1, Gradients(7)));  // of an epoch that ended before the step was applied
  Write(1);
  ASSERT_OK(log_->WriteGradients(Run(), 2, Gradients(2)));
  ASSERT_EQ(*Reopen(Base(0)), 1u);
  Write(2);
  ASSERT_EQ(*Reopen(Base(0)), 2u);
}

TEST_F(StepLogTest, SegmentsFollowCutsAndGoWithThem) {
  Open();
  ASSERT_OK(log_->Begin(Base(0), AllSlots(), false));
  Write(1);
  Write(2);
  ASSERT_OK(log_->Begin(Base(2), AllSlots(), true));
  Write(3);
  EXPECT_EQ(Files().size(), 2u);
  ASSERT_EQ(*Reopen(Base(0)), 3u);  // the cut was prepared, but never committed
  EXPECT_EQ(Files().size(), 2u);
  ASSERT_OK(log_->RemoveBefore(Base(2)));
  EXPECT_EQ(Files().size(), 1u);
  ASSERT_EQ(*Reopen(Base(2)), 3u);
  ASSERT_OK(log_->Begin(Base(2), AllSlots(), false));  // restored: step 3 is given up
  EXPECT_EQ(Files().size(), 1u);
  ASSERT_EQ(*Reopen(Base(2)), 2u);
  ASSERT_EQ(*Reopen(Base(5)), 5u);  // another cut is the last one: what leads elsewhere goes
  EXPECT_TRUE(log_->empty());
  EXPECT_TRUE(Files().empty());
}

TEST_F(StepLogTest, ReplayUpToAStepGivesUpTheRest) {
  Open();
  ASSERT_OK(log_->Begin(Base(0), AllSlots(), false));
  for (uint64_t step = 1; step <= 4; ++step) Write(step);
  ASSERT_OK(log_->Begin(Base(4), AllSlots(), true));
  Write(5);
  ASSERT_EQ(*Reopen(Base(0), 4), 4u);
  EXPECT_EQ(Files().size(), 2u);  // the second has no step any more
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
  ASSERT_OK(log_->Begin(Base(0), AllSlots(), false));
  for (uint64_t step = 1; step <= 2; ++step) Write(step);
  ASSERT_OK(log_->Begin(Base(2), AllSlots(), true));
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

// Step 1, slots that move here, step 2: whatever a crash leaves, the slots are there when the server has them, or known to be missing.
TEST_F(StepLogTest, MovedSlotsComeBackOrAreKnownToBeMissing) {
  const SlotSet before = *ParseSlots("0-4"), after = *ParseSlots("0-6");
  slots_ = before;
  Open();
  ASSERT_OK(log_->Begin(Base(0), before, false));
  Write(1);
  WriteImages();
  ASSERT_OK(log_->WriteTaken({Taken().marks, *ParseSlots("900"), false, {}}));  // a move that was given up
  WriteImages();
  ASSERT_OK(log_->WriteTaken(Taken()));
  const uint64_t taken = log_->bytes();
  ASSERT_EQ(*Reopen(Base(0)), 1u);  // the slot map was not replaced
  EXPECT_EQ(owned_, before);
  EXPECT_FALSE(taken_at_.has_value());
  slots_ = after;
  ASSERT_EQ(*Reopen(Base(0)), 1u);  // it was
  EXPECT_EQ(owned_, after);
  EXPECT_EQ(taken_at_, 1u);
  ASSERT_OK(log_->WriteOwned(after));
  const uint64_t owned = log_->bytes();
  Write(2);
  ASSERT_EQ(*Reopen(Base(0), 1), 1u);  // back to the fence: the slots stay
  EXPECT_EQ(owned_, after);
  EXPECT_EQ(taken_at_, 1u);
  Write(2);
  ASSERT_OK(log_->Begin(Base(2), after, true));
  Write(3);
  ASSERT_EQ(*Reopen(Base(0)), 3u);
  EXPECT_EQ(owned_, after);
  EXPECT_EQ(taken_at_, 1u);
  fs::remove(Files().back());

  const std::string path = Files()[0], whole = *ReadFile(path);
  for (size_t size = whole.size(); size-- > 0; size -= std::min<size_t>(size, 10)) {
    ASSERT_OK(WriteFileAtomic(path, whole.substr(0, size)));
    const auto head = Reopen(Base(0));
    ASSERT_OK(head);
    EXPECT_LE(*head, 1u);  // the last byte is the last step's
    if (Files().empty()) continue;
    EXPECT_EQ(owned_, size >= taken ? after : before) << size;
    EXPECT_EQ(taken_at_.has_value(), size >= taken) << size;
  }
  // Damage in a moved block is no torn tail: the slots became this server's when all before was on disk.
  std::string damaged = whole;
  damaged[taken - 400] ^= 1;
  for (const uint64_t size : {owned, whole.size()}) {
    ASSERT_OK(WriteFileAtomic(path, damaged.substr(0, size)));
    EXPECT_CODE(Reopen(Base(0)).status(), kDataLoss, "a damaged record, but a change of this server's slots lies behind it");
    EXPECT_EQ(ReadFile(path)->size(), size);
  }
  // A step that was made without the slots: they are not what the images say any more.
  ASSERT_OK(WriteFileAtomic(path, whole.substr(0, taken)));
  slots_ = before;
  ASSERT_EQ(*Reopen(Base(0)), 1u);
  Write(2);
  slots_ = after;
  ASSERT_EQ(*Reopen(Base(0)), 2u);
  EXPECT_EQ(owned_, before);
  EXPECT_FALSE(taken_at_.has_value());
  // Slots without their blocks.
  ASSERT_OK(log_->WriteOwned(after));
  EXPECT_CODE(Reopen(Base(0)).status(), kDataLoss, "slots 5-6 without their blocks");
  EXPECT_GT(owned, taken);
}

TEST_F(StepLogTest, APurgeTakesImagesToo) {
  Open();
  ASSERT_OK(log_->Begin(Base(0), *ParseSlots("0-4"), false));
  Write(1);
  WriteImages();
  ASSERT_OK(log_->WriteTaken(Taken()));
  const uint64_t before = log_->bytes();
  ASSERT_OK(log_->Purge([](BlockId id) { return id.level == 2; }));
  EXPECT_LT(log_->bytes() + 2 * 3 * spec_.BlockBytes(2), before + 1);
  EXPECT_EQ(ReadFile(Files()[0])->find(std::string(spec_.BlockBytes(2), '\1')), std::string::npos);
}

TEST_F(StepLogTest, AMissingSegmentIsDataLoss) {
  Open();
  ASSERT_OK(log_->Begin(Base(0), AllSlots(), false));
  Write(1);
  ASSERT_OK(log_->Begin(Base(1), AllSlots(), true));
  Write(2);
  ASSERT_OK(log_->Begin(Base(2), AllSlots(), true));
  Write(3);
  const std::vector<std::string> files = Files();
  fs::resize_file(files[1], fs::file_size(files[1]) - 8);
  EXPECT_CODE(Reopen(Base(0)), kDataLoss, "up to 1 and from 3 on");
  fs::remove(files[1]);
  EXPECT_CODE(Reopen(Base(0)), kDataLoss, "up to 1 and from 3 on");
}

TEST_F(StepLogTest, RefusesTheLogOfAnotherBank) {
  Open();
  ASSERT_OK(log_->Begin(Base(0), AllSlots(), false));
  EXPECT_CODE(StepLog::Open(directory_, "other"), kFailedPrecondition, "this bank's is other");
}

}  // namespace
}  // namespace membank
