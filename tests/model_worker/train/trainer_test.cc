// The whole trainer over in-process shards: PyTorch's numbers, equal results whatever the overlap and micro-batches, resume after crashes at
// every call to the servers, and what is refused.
#include "model_worker/train/trainer.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <limits>
#include <map>
#include <memory>

#include "common/bank/gradient_codec.h"
#include "common/base/file.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "model_worker/train/batch.h"
#include "nlohmann/json.hpp"
#include "tests/testing/shard_memory_client.h"
#include "tests/testing/tiny_run.h"

namespace membank {
namespace {

using testing_support::ShardMemoryClient;
using testing_support::TinyRun;
using ::testing::HasSubstr;

const std::atomic<bool> kNeverStop{false};

std::vector<nlohmann::json> ReadLog(const TrainOptions& options) {
  std::vector<nlohmann::json> lines;
  const std::string text = *ReadFile(options.output + "/log.jsonl");
  for (size_t begin = 0, end; (end = text.find('\n', begin)) != std::string::npos; begin = end + 1)
    lines.push_back(nlohmann::json::parse(text.substr(begin, end - begin)));
  return lines;
}

std::vector<double> Losses(const TrainOptions& options, const char* key = "loss") {
  std::vector<double> losses;
  for (const nlohmann::json& line : ReadLog(options))
    if (!line.contains("validation")) losses.push_back(line.at(key));
  return losses;
}

class TrainerTest : public ::testing::Test {
 protected:
  void SetUp() override { run_.WriteCorpus(TinyRun::RandomSequences(10, 4)); }

  std::unique_ptr<ShardMemoryClient> NewBank(const std::string& name, int servers = 2) {
    return std::make_unique<ShardMemoryClient>(run_.spec(), run_.path() + "/bank-" + name, servers);
  }

  // Trains a fresh bank and returns it.
  std::unique_ptr<ShardMemoryClient> TrainFresh(const std::string& name, TrainOptions options) {
    auto bank = NewBank(name);
    const auto summary = Train(options, *bank, kNeverStop);
    EXPECT_TRUE(summary.ok()) << summary.status();
    return bank;
  }

  TinyRun run_;
};

TEST_F(TrainerTest, FrozenTrainingLowersTheLossAndReportsIt) {
  TrainOptions options = run_.Options("run");
  options.steps = 40;
  auto bank = NewBank("a");
  const auto summary = Train(options, *bank, kNeverStop);
  ASSERT_TRUE(summary.ok()) << summary.status();
  const std::vector<double> losses = Losses(options);
  ASSERT_EQ(losses.size(), 40u);
  EXPECT_LT(losses.back(), 0.8 * losses.front());
  EXPECT_EQ(summary->loss, losses.back());
  EXPECT_TRUE(summary->finished());
  EXPECT_GT(summary->pushed_bytes, 0u);
  EXPECT_EQ(bank->GetStatus()->head_step, 40u);
  EXPECT_EQ(bank->announced.size(), bank->GetStatus()->touched_blocks) << "every update's blocks are announced to the servers";
  EXPECT_TRUE(std::filesystem::exists(options.output + "/loss.svg"));
}

// Also beside a generic memory, in chosen layers, and with int8 gradients and the row-wise optimizer, whose rows are parts of the matrices.
TEST_F(TrainerTest, EveryMemoryTypeTrains) {
  const auto facts = ReadAnchorFacts(run_.anchor());
  ASSERT_TRUE(facts.ok()) << facts.status();
  for (const MemoryType type : {MemoryType::kLoraQk, MemoryType::kLoraVo, MemoryType::kLoraFfn, MemoryType::kKv}) {
    run_.spec().type = type;
    run_.spec().SetAnchor(facts->shape);
    run_.spec().memory_layers.clear();
    if (type == MemoryType::kLoraFfn) run_.spec().memory_layers = {1};
    const std::string name(MemoryTypeName(type));
    TrainOptions options = run_.Options(name);
    options.steps = 40;
    if (type == MemoryType::kLoraVo) options.generic_probability = 0.2;
    if (type == MemoryType::kLoraVo) options.gradient_dtype = kI8Rows;
    if (type == MemoryType::kLoraQk) options.optimizer = OptimizerKind::kRowWiseAdamW;
    TrainFresh(name, options);
    const std::vector<double> losses = Losses(options);
    ASSERT_EQ(losses.size(), 40u);
    EXPECT_LT(losses.back(), 0.97 * losses.front()) << name;
  }
}

TEST_F(TrainerTest, PrefetchChangesNothing) {
  TrainOptions options = run_.Options("prefetch");
  options.generic_probability = 0.3;
  auto with = TrainFresh("with", options);
  TrainOptions without_options = options;
  without_options.prefetch = false;
  without_options.output += "-off";
  auto without = TrainFresh("without", without_options);
  EXPECT_EQ(Losses(options), Losses(without_options));
  EXPECT_EQ(with->Dump(), without->Dump());
}

TEST_F(TrainerTest, MicroBatchesEqualTheLargeBatch) {
  TrainOptions options = run_.Options("large");
  options.mode = TrainMode::kCotrain;
  TrainFresh("large", options);
  TrainOptions small = options;
  small.micro_batch_sequences = 1;
  small.output += "-small";
  TrainFresh("small", small);
  EXPECT_THAT(Losses(small), ::testing::Pointwise(::testing::DoubleNear(1e-5), Losses(options)));
}

TEST_F(TrainerTest, GenericControlSeesTheSameTokensAndLeavesTheBankAlone) {
  TrainOptions options = run_.Options("plain");
  options.clip = 0;  // the two share the norm
  auto plain = TrainFresh("plain", options);
  TrainOptions control = options;
  control.generic_control = true;
  control.output += "-control";
  auto controlled = TrainFresh("control", control);
  // The bank's own blocks are what they are without the control; the generic ones have moved.
  EXPECT_THAT(Losses(control), ::testing::Pointwise(::testing::DoubleNear(1e-5), Losses(options)));
  EXPECT_EQ(controlled->GetStatus()->head_step, options.steps);
  const std::vector<double> generic = Losses(control, "loss_generic");
  EXPECT_NEAR(generic.front(), Losses(control).front(), 1e-5);  // untouched blocks have no effect
  EXPECT_LT(generic.back(), generic.front());
  for (const nlohmann::json& line : ReadLog(control)) EXPECT_EQ(line["tokens"].get<int>() % 2, 0);
}

TEST_F(TrainerTest, StalenessOneTrainsToo) {
  TrainOptions options = run_.Options("stale");
  options.steps = 40;
  options.staleness = 1;
  TrainFresh("stale", options);
  const std::vector<double> losses = Losses(options);
  EXPECT_LT(losses.back(), 0.8 * losses.front());
}

// --- Resume --------------------------------------------------------------------------------------------------------------------------

// Trainer and servers die together at the n-th call that changes the servers, for every n; then everything starts again.
void CrashEverywhere(TinyRun& run, const TrainOptions& options, const std::string& expected_bank, int stride) {
  const std::vector<double> expected = Losses(options);
  for (int crash_at = 1;; crash_at += stride) {
    TrainOptions crashing = options;
    crashing.output = options.output + "-" + std::to_string(crash_at);
    ShardMemoryClient bank(run.spec(), crashing.output + "-bank", 2);
    std::atomic<int> calls{0};
    bank.intercept = [&](const std::string& call) {
      return ++calls >= crash_at ? absl::UnavailableError("crashed at " + call) : absl::OkStatus();
    };
    const bool crashed = !Train(crashing, bank, kNeverStop).ok();
    bank.intercept = nullptr;
    bank.Crash();
    const auto summary = Train(crashing, bank, kNeverStop);
    ASSERT_TRUE(summary.ok()) << "after call " << crash_at << ": " << summary.status();
    ASSERT_EQ(Losses(crashing), expected) << "after call " << crash_at;
    ASSERT_EQ(bank.Dump(), expected_bank) << "after call " << crash_at;
    if (!crashed) return;  // past the last call
  }
}

TEST_F(TrainerTest, ResumeIsBitEqualWhereverEverythingCrashes) {
  TrainOptions options = run_.Options("whole");
  options.generic_probability = 0.2;
  auto bank = TrainFresh("whole", options);
  CrashEverywhere(run_, options, bank->Dump(), 5);
}

TEST_F(TrainerTest, CotrainedResumeIsBitEqual) {
  TrainOptions options = run_.Options("cotrain");
  options.mode = TrainMode::kCotrain;
  auto bank = TrainFresh("cotrain", options);
  CrashEverywhere(run_, options, bank->Dump(), 17);
}

TEST_F(TrainerTest, StopFinishesTheStepAndTheNextStartGoesOn) {
  TrainOptions options = run_.Options("whole");
  auto whole = TrainFresh("whole", options);
  TrainOptions stopped = options;
  stopped.output += "-stopped";
  auto bank = NewBank("stopped");
  const std::atomic<bool> stop{true};
  const auto first = Train(stopped, *bank, stop);
  ASSERT_TRUE(first.ok()) << first.status();
  EXPECT_EQ(first->steps_done, 1u);
  EXPECT_FALSE(first->finished());
  const auto second = Train(stopped, *bank, kNeverStop);
  ASSERT_TRUE(second.ok()) << second.status();
  EXPECT_EQ(second->resumed_from, 1u);
  EXPECT_EQ(Losses(stopped), Losses(options));
  EXPECT_EQ(bank->Dump(), whole->Dump());
}

// Servers of durability class "step": a frozen run goes on from the last step that all of them have, wherever the crash was.
TEST_F(TrainerTest, WithDurableStepsNothingIsRepeated) {
  TrainOptions options = run_.Options("straight");
  const std::string straight = TrainFresh("straight", options)->Dump();
  for (int crash_at = 1; crash_at < 27; crash_at += 5) {
    options.output = run_.Options(fmt::format("crashed-{}", crash_at)).output;
    ShardMemoryClient bank(run_.spec(), run_.path() + fmt::format("/bank-{}", crash_at), 2, Durability::kStep);
    std::atomic<int> calls = 0;
    bank.intercept = [&](const std::string& call) {
      const bool at_the_end = call == "PrepareCheckpoint" && calls == 24;  // all 12 steps on both servers
      return (call == "ApplyStep" && ++calls == crash_at) || at_the_end ? absl::UnavailableError("the power went") : absl::OkStatus();
    };
    ASSERT_FALSE(Train(options, bank, kNeverStop).ok());
    bank.intercept = nullptr;
    bank.Crash();
    const auto resumed = Train(options, bank, kNeverStop);
    ASSERT_TRUE(resumed.ok()) << resumed.status();
    // Two servers apply each step, so the step of call n was the (n + 1) / 2 th, which is the first one not done by both.
    EXPECT_EQ(resumed->resumed_from, std::min<uint64_t>(options.steps, (crash_at + 1) / 2 - 1));
    EXPECT_EQ(bank.ListCheckpoints()->back().step, options.steps);
    EXPECT_EQ(bank.Dump(), straight);
  }
}

// A server that slots moved to since cannot go back as far as another one has fallen back: the checkpoint is what they have in common.
TEST_F(TrainerTest, WithDurableStepsARefusedRewindGoesToTheCheckpoint) {
  TrainOptions options = run_.Options("straight");
  const std::string straight = TrainFresh("straight", options)->Dump();
  options.output = run_.Options("crashed").output;
  ShardMemoryClient bank(run_.spec(), run_.path() + "/bank-crashed", 2, Durability::kStep);
  std::atomic<int> calls = 0, rewinds = 0;
  bank.intercept = [&](const std::string& call) {
    return call == "ApplyStep" && ++calls == 17 ? absl::UnavailableError("the power went") : absl::OkStatus();
  };
  ASSERT_FALSE(Train(options, bank, kNeverStop).ok());
  bank.intercept = [&](const std::string& call) {  // the second of the two servers
    return call == "Rewind" && ++rewinds == 2 ? absl::OutOfRangeError("its newest slots came at step 9") : absl::OkStatus();
  };
  bank.Crash();
  const uint64_t checkpoint = bank.ListCheckpoints()->back().step;
  ASSERT_LT(checkpoint, 8u);
  const auto resumed = Train(options, bank, kNeverStop);
  ASSERT_TRUE(resumed.ok()) << resumed.status();
  EXPECT_EQ(rewinds, 2);
  EXPECT_EQ(resumed->resumed_from, checkpoint);
  EXPECT_EQ(bank.Dump(), straight);
}

TEST_F(TrainerTest, OldCheckpointsGoAndFinishedRunsStayFinished) {
  TrainOptions options = run_.Options("run");
  options.checkpoint_every = 2;
  auto bank = TrainFresh("bank", options);
  EXPECT_EQ(bank->ListCheckpoints()->size(), 2u);
  int local = 0;
  for (const auto& entry : std::filesystem::directory_iterator(options.output + "/checkpoints")) local += entry.is_directory();
  EXPECT_EQ(local, 2);
  const std::string before = bank->Dump();
  const auto again = Train(options, *bank, kNeverStop);
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_TRUE(again->finished());
  EXPECT_EQ(again->tokens, 0u);
  EXPECT_EQ(bank->Dump(), before);
}

// --- Validation ------------------------------------------------------------------------------------------------------------------------

// When every step is the whole corpus, the loss of step n + 1 is that of the same sequences after step n.
TEST_F(TrainerTest, ValidationIsTheLossThatTheNextStepSees) {
  std::vector<PackedSequence> sequences = TinyRun::RandomSequences(10, 4);
  std::reverse(sequences.begin(), sequences.end());  // another corpus
  const std::string held_out = run_.path() + "/held-out";
  ASSERT_TRUE(WritePackedCorpus(held_out, run_.info(), sequences).ok());
  uint64_t targets = 0, documents = 0;
  for (const PackedSequence& sequence : sequences) {
    targets += CountTargets(sequence);
    documents += sequence.document_ends.size();
  }
  TrainOptions options = run_.Options("plain");
  options.batch_sequences = 10;
  options.micro_batch_sequences = 3;
  options.generic_control = true;
  const std::string untouched = TrainFresh("plain", options)->Dump();
  TrainOptions validated = options;
  validated.output += "-validated";
  validated.validation_path = held_out;
  validated.validate_every = 2;
  auto bank = NewBank("validated");
  const auto summary = Train(validated, *bank, kNeverStop);
  ASSERT_TRUE(summary.ok()) << summary.status();
  EXPECT_EQ(bank->Dump(), untouched);
  const std::vector<double> losses = Losses(validated), generic = Losses(validated, "loss_generic");
  EXPECT_EQ(losses, Losses(options));
  std::vector<nlohmann::json> found;
  for (const nlohmann::json& line : ReadLog(validated))
    if (line.contains("validation")) found.push_back(line);
  ASSERT_EQ(found.size(), 6u);
  for (const nlohmann::json& line : found) {
    const uint64_t step = line["step"];
    const nlohmann::json& validation = line["validation"];
    EXPECT_EQ(validation["targets"], targets);
    EXPECT_EQ(validation["bytes"], targets - documents);  // a byte each, but for the ends of text
    EXPECT_NEAR(validation["none"]["loss"], losses[0], 1e-5);  // an untouched bank has no effect
    if (step < 12) {
      EXPECT_NEAR(validation["fetched"]["loss"], losses[step], 1e-5);
      EXPECT_NEAR(validation["generic"]["loss"], generic[step], 1e-5);
    }
    EXPECT_NEAR(validation["fetched"]["bits_per_byte"],
                validation["fetched"]["loss"].get<double>() * targets / std::log(2.0) / (targets - documents), 1e-9);
  }
  EXPECT_EQ(nlohmann::json::parse(summary->validation), found.back()["validation"]);
  EXPECT_THAT(*ReadFile(validated.output + "/loss.svg"), HasSubstr("held out, no memory"));
}

TEST_F(TrainerTest, ValidationOfAnAnchorAloneAndWhatIsRefused) {
  const std::string held_out = run_.path() + "/held-out";
  ASSERT_TRUE(WritePackedCorpus(held_out, run_.info(), TinyRun::RandomSequences(3, 2)).ok());
  TrainOptions options = run_.Options("anchor");
  options.mode = TrainMode::kAnchor;
  options.validation_path = held_out;
  options.validation_sequences = 2;
  const auto summary = TrainAnchorAlone(options, kNeverStop);
  ASSERT_TRUE(summary.ok()) << summary.status();
  const auto validation = nlohmann::json::parse(summary->validation);  // after the last step
  EXPECT_FALSE(validation.contains("fetched"));
  EXPECT_LT(validation["none"]["loss"], 6.0);

  options = run_.Options("same");
  options.validation_path = options.corpus_path;
  auto bank = NewBank("same");
  EXPECT_THAT(std::string(Train(options, *bank, kNeverStop).status().message()), HasSubstr("is the corpus that is trained on"));
  PackedInfo info = run_.info();
  info.tokenizer_hash = "other";
  options.validation_path = run_.path() + "/other";
  ASSERT_TRUE(WritePackedCorpus(options.validation_path, info, TinyRun::RandomSequences(3, 2)).ok());
  EXPECT_THAT(std::string(Train(options, *bank, kNeverStop).status().message()),
              HasSubstr("--validation " + options.validation_path + ": the corpus was packed with tokenizer other"));
}

// --- The anchor alone ----------------------------------------------------------------------------------------------------------------

// The newest checkpoint's file below its anchor.
std::string AnchorBytes(const TrainSummary& summary, const char* file = "model.safetensors") {
  return *ReadFile(summary.run_directory + "/checkpoints/" + summary.checkpoint + "/anchor/" + file);
}

TEST_F(TrainerTest, AnchorAloneLearnsWithoutServersAndResumesBitEqual) {
  TrainOptions options = run_.Options("anchor");
  options.mode = TrainMode::kAnchor;
  const auto whole = TrainAnchorAlone(options, kNeverStop);
  ASSERT_TRUE(whole.ok()) << whole.status();
  EXPECT_LT(Losses(options).back(), 0.8 * Losses(options).front());
  EXPECT_EQ(whole->pushed_bytes + whole->fetched_bytes, 0u);
  EXPECT_TRUE(LoadTokenizer(whole->run_directory + "/checkpoints/" + whole->checkpoint + "/anchor").ok());

  TrainOptions stopped = options;
  stopped.output += "-stopped";
  const std::atomic<bool> stop{true};
  ASSERT_EQ(TrainAnchorAlone(stopped, stop)->steps_done, 1u);
  const auto resumed = TrainAnchorAlone(stopped, kNeverStop);
  ASSERT_TRUE(resumed.ok()) << resumed.status();
  EXPECT_EQ(resumed->resumed_from, 1u);
  EXPECT_EQ(Losses(stopped), Losses(options));
  EXPECT_EQ(AnchorBytes(*resumed), AnchorBytes(*whole));
}

// The baseline of a co-training run: the same sequences in the same order.
TEST_F(TrainerTest, AnchorAloneSeesTheSequencesOfACotrainedRun) {
  TrainOptions cotrain = run_.Options("cotrain");
  cotrain.mode = TrainMode::kCotrain;
  cotrain.learning_rate = cotrain.min_learning_rate = 0;  // nothing learns: the losses show the batches
  TrainFresh("cotrain", cotrain);
  TrainOptions anchor = cotrain;
  anchor.mode = TrainMode::kAnchor;
  anchor.output += "-anchor";
  ASSERT_TRUE(TrainAnchorAlone(anchor, kNeverStop).ok());
  EXPECT_THAT(Losses(anchor), ::testing::Pointwise(::testing::DoubleNear(1e-6), Losses(cotrain)));
  EXPECT_EQ(Losses(anchor, "tokens"), Losses(cotrain, "tokens"));
}

// --- What is refused -----------------------------------------------------------------------------------------------------------------

void ExpectRefused(const absl::StatusOr<TrainSummary>& result, absl::StatusCode code, const std::string& text) {
  EXPECT_EQ(result.status().code(), code) << result.status();
  EXPECT_THAT(std::string(result.status().message()), HasSubstr(text));
}

TEST_F(TrainerTest, RefusesToResumeWithOtherSettings) {
  TrainOptions options = run_.Options("run");
  auto bank = TrainFresh("bank", options);
  TrainOptions other = options;
  other.learning_rate = 2e-2;
  other.batch_sequences = 5;
  const auto result = Train(other, *bank, kNeverStop);
  ExpectRefused(result, absl::StatusCode::kFailedPrecondition, "learning-rate was 0.01, is now 0.02");
  EXPECT_THAT(std::string(result.status().message()), HasSubstr("batch-sequences was 4, is now 5"));
  options.resume = false;
  ExpectRefused(Train(options, *bank, kNeverStop), absl::StatusCode::kFailedPrecondition, "--resume is never");
}

TEST_F(TrainerTest, RefusesACorpusOfAnotherTokenizerTreeOrShape) {
  const std::vector<PackedSequence> sequences = TinyRun::RandomSequences(4, 2);
  const PackedInfo good = run_.info();
  auto bank = NewBank("bank");
  auto attempt = [&](const std::string& name, PackedInfo info) {
    const std::string path = run_.path() + "/corpus-" + name;
    EXPECT_TRUE(WritePackedCorpus(path, info, sequences).ok());
    TrainOptions options = run_.Options("run-" + name);
    options.corpus_path = path;
    return Train(options, *bank, kNeverStop);
  };
  PackedInfo info = good;
  info.tokenizer_hash = "other";
  ExpectRefused(attempt("tokenizer", info), absl::StatusCode::kFailedPrecondition, "packed with tokenizer other");
  info = good;
  info.tree_fingerprint = "other";
  ExpectRefused(attempt("tree", info), absl::StatusCode::kFailedPrecondition, "packed with tree other");
  info = good;
  info.sequence_length = 100000;
  ExpectRefused(attempt("length", info), absl::StatusCode::kFailedPrecondition, "context is 512");
  EXPECT_EQ(bank->GetStatus()->touched_blocks, 0u);
}

TEST_F(TrainerTest, RefusesABankOfAnotherAnchor) {
  run_.spec().anchor_fingerprint = "feed";
  auto bank = NewBank("bank");
  ExpectRefused(Train(run_.Options("run"), *bank, kNeverStop), absl::StatusCode::kFailedPrecondition, "belongs to anchor feed");
  run_.spec().hidden = 32;
  auto narrow = NewBank("narrow");
  ExpectRefused(Train(run_.Options("run"), *narrow, kNeverStop), absl::StatusCode::kFailedPrecondition, "hidden 32, the anchor's is 64");
}

TEST_F(TrainerTest, NotFiniteLossNamesStepAndBatchAndKeepsTheCheckpoint) {
  run_.spec().bank_id = "wild";
  TrainOptions options = run_.Options("wild");
  options.learning_rate = options.min_learning_rate = 1;  // the largest allowed
  options.weight_decay = 10;                               // multiplies the weights by -9 in every step
  options.steps = 400;
  options.clip = 0;
  auto bank = NewBank("wild");
  const auto result = Train(options, *bank, kNeverStop);
  ASSERT_FALSE(result.ok());
  EXPECT_THAT(std::string(result.status().message()), HasSubstr("step "));
  EXPECT_FALSE(bank->ListCheckpoints()->empty());
}

TEST_F(TrainerTest, NotFiniteGradientNamesStepAndBatchAndAppliesNothing) {
  TrainOptions options = run_.Options("norm");
  auto bank = NewBank("norm");
  std::string before;
  bank->intercept = [&](const std::string& call) {
    if (call == "PrepareStep" && bank->GetStatus()->head_step == 3) {
      before = bank->Dump();
      bank->norm_factor = std::numeric_limits<double>::quiet_NaN();
    }
    return absl::OkStatus();
  };
  const auto result = Train(options, *bank, kNeverStop);
  ExpectRefused(result, absl::StatusCode::kFailedPrecondition, "step 4");
  EXPECT_THAT(std::string(result.status().message()), HasSubstr("norm is nan; its batch is corpus sequences "));
  EXPECT_EQ(bank->Dump(), before);
}

TEST_F(TrainerTest, ModeAndServersMustAgree) {
  TrainOptions options = run_.Options("mode");
  ExpectRefused(TrainAnchorAlone(options, kNeverStop), absl::StatusCode::kInvalidArgument, "--mode frozen needs memory servers");
  options.mode = TrainMode::kAnchor;
  auto bank = NewBank("mode");
  ExpectRefused(Train(options, *bank, kNeverStop), absl::StatusCode::kInvalidArgument, "--mode anchor has no memory servers");
}

TEST_F(TrainerTest, OneTrainerPerRunDirectory) {
  TrainOptions options = run_.Options("run");
  auto bank = NewBank("bank");
  bool tried = false;
  bank->intercept = [&](const std::string& call) {
    if (tried || call != "PrepareCheckpoint") return absl::OkStatus();
    tried = true;
    auto other = NewBank("other");
    ExpectRefused(Train(options, *other, kNeverStop), absl::StatusCode::kFailedPrecondition, "another trainer runs in");
    return absl::OkStatus();
  };
  EXPECT_TRUE(Train(options, *bank, kNeverStop).ok());
  EXPECT_TRUE(tried);
}

// --- PyTorch's numbers ---------------------------------------------------------------------------------------------------------------

class GoldenTest : public ::testing::TestWithParam<const char*> {};

TEST_P(GoldenTest, TenAdamWStepsEqualPyTorch) {
  const auto golden = nlohmann::json::parse(*ReadFile(std::string(std::getenv("MEMBANK_SOURCE_DIR")) + "/tests/golden/train/train.json"));
  const std::string name = GetParam();
  TinyRun run;
  std::vector<PackedSequence> sequences;
  for (const auto& sequence : golden["sequences"])
    sequences.push_back({sequence["leaf"], sequence["tokens"].get<std::vector<int32_t>>(), sequence["document_ends"].get<std::vector<uint32_t>>()});
  run.WriteCorpus(sequences);
  ASSERT_EQ(run.spec().widths, golden["widths"].get<std::vector<uint32_t>>());
  ASSERT_EQ(run.spec().seed, golden["seed"]);
  TrainOptions options = run.Options("golden");
  options.mode = name == "frozen" ? TrainMode::kFrozen : name == "anchor" ? TrainMode::kAnchor : TrainMode::kCotrain;
  options.steps = golden["steps"];
  options.batch_sequences = static_cast<uint32_t>(sequences.size());
  options.warmup_steps = golden["warmup_steps"];
  options.learning_rate = golden["learning_rate"];
  options.min_learning_rate = golden["min_learning_rate"];
  options.weight_decay = golden["weight_decay"];
  options.clip = golden["clip"];
  if (name == "recipe") {
    options.schedule = Schedule::kWsd;
    options.cooldown_steps = golden["cooldown_steps"];
    options.z_loss = golden["z_loss"];
    options.anchor_weight_decay = golden["anchor_weight_decay"];
    options.decay_norms = false;
  }
  ShardMemoryClient bank(run.spec(), run.path() + "/bank", 2);
  const auto summary = options.HasBank() ? Train(options, bank, kNeverStop) : TrainAnchorAlone(options, kNeverStop);
  ASSERT_TRUE(summary.ok()) << summary.status();
  const auto& expected = golden[name];
  EXPECT_THAT(Losses(options), ::testing::Pointwise(::testing::DoubleNear(1e-5), expected["losses"].get<std::vector<double>>()));
  EXPECT_THAT(Losses(options, "gradient_norm"), ::testing::Pointwise(::testing::DoubleNear(1e-4), expected["gradient_norms"].get<std::vector<double>>()));
}

INSTANTIATE_TEST_SUITE_P(Recipes, GoldenTest, ::testing::Values("frozen", "cotrain", "anchor", "recipe"));

}  // namespace
}  // namespace membank
