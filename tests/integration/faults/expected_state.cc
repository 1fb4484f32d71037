// A trainer whose every block has a known value: gradients are small integers, SGD runs with rate 1, so what a block lost since step 0 is
// the count of all that was pushed to it, and that is a function of the step alone. One push lost or counted twice shows, whatever happened
// to servers and connections meanwhile. It pushes as two ranks in random order, repeats and replays calls, prepares, commits, aborts,
// deletes and restores checkpoints, publishes versions and purges a block; when a call fails it goes back to the newest checkpoint, as a
// trainer does. It checks that no acknowledged checkpoint or version is lost, and compares every block after every restore and round.
//
//   expected_state --slot-map FILE --seed N [--rounds N | --stop-file FILE] [--check-only | --check-beside]
//
// Exit 0: everything held; the last line is a JSON object of counts. Exit 1: the first violation on stderr.
#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <map>
#include <random>
#include <thread>

#include "CLI/CLI.hpp"
#include "common/bank/block_init.h"
#include "common/bank/block_layout.h"
#include "common/base/status_macros.h"
#include "common/client/access_client.h"
#include "common/client/memory_client.h"
#include "nlohmann/json.hpp"

namespace membank {
namespace {

using std::chrono::milliseconds;
using Clock = std::chrono::steady_clock;

constexpr uint32_t kRanks = 2;
constexpr uint64_t kRoundSteps = 4;  // at most, between a checkpoint and the restore of it
constexpr size_t kMaxVersionsAtPurge = 150;  // each takes its time
constexpr std::string_view kInt8 = "-int8";          // ends the names of versions that are
const int kTimeScale = [] {  // as tests/testing/local_cluster.py
  const char* const scale = std::getenv("MEMBANK_TIME_SCALE");
  return scale != nullptr ? std::atoi(scale) : 1;
}();
const auto kGiveUp = std::chrono::seconds(60) * kTimeScale;  // without progress

struct Options {
  std::string slot_map, stop_file;
  uint64_t seed = 1, rounds = 10;
  bool check_only = false, check_beside = false;
};

// A violation of what is promised; everything else that goes wrong is a fault to recover from.
struct Violation : std::runtime_error {
  using std::runtime_error::runtime_error;
};

template <typename... Arguments>
void Require(bool holds, fmt::format_string<Arguments...> text, Arguments&&... arguments) {
  if (!holds) throw Violation(fmt::format(text, std::forward<Arguments>(arguments)...));
}

// Repeats what changes nothing, or may be repeated, until it works.
template <typename Call>
auto Insist(const char* what, Call call) {
  for (const auto end = Clock::now() + kGiveUp;; std::this_thread::sleep_for(milliseconds(20))) {
    auto result = call();
    if (result.ok()) return *std::move(result);
    Require(Clock::now() < end, "{}: no success within {} s: {}", what, kGiveUp.count(), result.status().ToString());
  }
}

uint64_t Mix(uint64_t x) {
  x = (x ^ (x >> 31)) * 0x9e3779b97f4a7c15ull;
  return x ^ (x >> 29);
}

// A leaf that is trained in the first steps only, and purged later.
constexpr BlockId kDoomed = {2, 6};
constexpr uint64_t kDoomedSteps = 2;

// What rank `rank` pushes to a block at `step`; 0: the block is not in its push.
int Gradient(uint64_t step, BlockId id, uint32_t rank) {
  if (id == kDoomed) return step <= kDoomedSteps ? 3 : 0;
  const uint64_t hash = Mix(step * 1000003 + id.level * 10007 + id.cluster * 101 + rank);
  return hash % 3 == 0 ? static_cast<int>(hash / 3 % 5 + 1) : 0;
}

class Trainer {
 public:
  Trainer(MemoryClient* client, AccessClient* access, const Options& options)
      : client_(*client), access_(*access), spec_(client->spec()), random_(options.seed), may_be_purged_(options.check_only || options.check_beside) {
    for (uint32_t level = 1; level <= spec_.depth(); ++level)
      for (uint32_t cluster = 0; cluster <= ClusterCount(spec_.fan_out, level); ++cluster) blocks_.push_back({level, cluster});
  }

  // Gets hold of the servers as they are.
  void Begin() {
    const uint64_t head = Insist("status", [&] { return client_.GetStatus(); }).head_step;
    CheckBlocks(head, "");
    if (head > 0) return Recover();
    absl::Status begun = Checkpoint("c0", 0);
    while (!begun.ok()) {
      Recover();
      begun = Checkpoint("c0", 0);
    }
    Recover();
  }

  // Three steps, and each thing that can be done to checkpoints and versions.
  void Round() {
    if (const absl::Status status = TryRound(); !status.ok()) {
      ++counts_["failed_calls"];
      if (status.code() == absl::StatusCode::kResourceExhausted) ++counts_["refused_for_space"];
      Require(!absl::IsDataLoss(status), "{}", status.ToString());
      Recover();
    }
  }

  void CheckNow() { CheckBlocks(Head(), ""); }

  // While another trainer works: between two looks it may have been some steps on, and back at its last checkpoint.
  void CheckBeside() {
    const uint64_t before = Head();
    const auto blocks = Read("");
    const uint64_t after = Head();
    const uint64_t first = std::min(before, after) - std::min<uint64_t>(std::min(before, after), kRoundSteps), last = std::max(before, after) + kRoundSteps;
    for (const auto& [id, values] : blocks) {
      uint64_t step = first;
      while (step < last && values.back() != -Expected(id, step)) ++step;
      CheckBlock(id, values, step, "the head");
    }
    ++counts_["comparisons"];
  }

  const std::map<std::string, uint64_t>& counts() const { return counts_; }

 private:
  bool Chance(int percent) { return static_cast<int>(random_() % 100) < percent; }

  absl::Status TryRound() {
    for (int i = 0; i < 3; ++i) RETURN_IF_ERROR(Step());
    RETURN_IF_ERROR(client_.PrepareCheckpoint(fmt::format("a{}", head_), head_));
    RETURN_IF_ERROR(client_.AbortCheckpoint(fmt::format("a{}", head_)));
    const std::string id = fmt::format("c{}", head_);
    RETURN_IF_ERROR(Checkpoint(id, head_));
    if (Chance(30)) RETURN_IF_ERROR(Publish(id));
    RETURN_IF_ERROR(Step());
    if (Chance(30)) {
      RETURN_IF_ERROR(client_.RestoreCheckpoint(id));
      ++counts_["restores"];
      return BeginRun();
    }
    RETURN_IF_ERROR(client_.PrepareCheckpoint(fmt::format("d{}", head_), head_));
    RETURN_IF_ERROR(client_.DeleteCheckpoint(fmt::format("d{}", head_)));
    if (Chance(40) && published_.size() < kMaxVersionsAtPurge) RETURN_IF_ERROR(Purge());
    ++counts_["rounds"];
    return absl::OkStatus();
  }

  absl::Status Checkpoint(const std::string& id, uint64_t step) {
    RETURN_IF_ERROR(client_.PrepareCheckpoint(id, step));
    RETURN_IF_ERROR(client_.CommitCheckpoint(id));
    if (Chance(20)) RETURN_IF_ERROR(client_.CommitCheckpoint(id));
    committed_ = step;
    ++counts_["checkpoints"];
    return absl::OkStatus();
  }

  absl::Status Publish(const std::string& id) {
    const bool int8 = Chance(50);
    const std::string name = fmt::format("v{}{}", head_, int8 ? kInt8 : "");
    RETURN_IF_ERROR(client_.Publish(id, name, int8 ? PayloadType::kI8Rows : PayloadType::kBank));
    published_[name] = head_;
    ++counts_["versions"];
    return absl::OkStatus();
  }

  // No checkpoint is older than the steps that trained the block any more. The head stays, the run ends.
  absl::Status Purge() {
    const auto set_blocked = [&](bool blocked) {
      return access_.Change([&](const BankSpec&, AccessTable* table) {
        table->SetBlocked({kDoomed.level, kDoomed.cluster}, blocked);
        return absl::OkStatus();
      }).status();
    };
    RETURN_IF_ERROR(set_blocked(true));
    may_be_purged_ = true;
    RETURN_IF_ERROR(access_.Purge(ToString(TreePrefix{kDoomed.level, kDoomed.cluster}, spec_.fan_out)).status());
    purged_ = true;
    ++counts_["purges"];
    RETURN_IF_ERROR(set_blocked(false));
    return BeginRun();
  }

  absl::Status Push(uint64_t step, uint32_t rank) {
    std::vector<std::vector<float>> values;
    std::vector<BlockGradient> gradients;
    values.reserve(blocks_.size());
    for (BlockId id : blocks_) {
      const int gradient = Gradient(step, id, rank);
      if (gradient == 0) continue;
      values.emplace_back(spec_.BlockElements(id.level), static_cast<float>(gradient));
      gradients.push_back({id, DType::kF32, {reinterpret_cast<const uint8_t*>(values.back().data()), values.back().size() * sizeof(float)}});
    }
    return client_.Push(Id(step), rank, gradients);
  }

  StepId Id(uint64_t step) const { return {"expected", epoch_, step}; }

  // Both ranks at once, some pushes and phases twice, old pushes again and one that is too early.
  absl::Status Step() {
    const uint64_t step = head_ + 1;
    std::vector<std::pair<uint64_t, uint32_t>> calls;
    for (uint32_t rank = 0; rank < kRanks; ++rank) {
      calls.push_back({step, rank});
      if (Chance(30)) calls.push_back({step, rank}), ++counts_["duplicated_pushes"];
      if (Chance(20) && head_ > first_) calls.push_back({head_, rank}), ++counts_["replayed_pushes"];
    }
    std::shuffle(calls.begin(), calls.end(), random_);
    std::vector<absl::Status> results(calls.size());
    std::vector<std::thread> threads;
    for (size_t i = 0; i < calls.size(); ++i) {
      threads.emplace_back([&, i, wait = random_() % 3] {
        std::this_thread::sleep_for(milliseconds(wait));
        results[i] = Push(calls[i].first, calls[i].second);
      });
    }
    for (std::thread& thread : threads) thread.join();
    for (const absl::Status& result : results) RETURN_IF_ERROR(result);
    if (Chance(10)) {
      const absl::Status early = Push(step + 2, 0);
      Require(!early.ok(), "a push of step {} was taken while the head is at {}", step + 2, head_);
      ++counts_["early_pushes"];
    }
    RETURN_IF_ERROR(client_.PrepareStep(Id(step), std::chrono::seconds(3)).status());
    if (Chance(20)) RETURN_IF_ERROR(client_.PrepareStep(Id(step), std::chrono::seconds(3)).status());
    RETURN_IF_ERROR(client_.ApplyStep(Id(step), {1, 1, 0}));
    if (Chance(20)) RETURN_IF_ERROR(client_.ApplyStep(Id(step), {1, 1, 0}));
    head_ = step;
    ++counts_["steps"];
    return absl::OkStatus();
  }

  absl::Status BeginRun() {
    ASSIGN_OR_RETURN(const BankStatus status, client_.GetStatus());
    RunSettings run;
    run.run_id = "expected";
    epoch_ = std::max(epoch_, status.run_epoch) + 1;
    run.epoch = epoch_;
    run.world_size = kRanks;
    run.optimizer = OptimizerKind::kSgd;
    first_ = head_ = status.head_step;
    run.first_step = head_ + 1;
    return client_.BeginRun(run);
  }

  // Back to the newest checkpoint that all servers have, committed or only prepared; never older than what was acknowledged.
  void Recover() {
    ++counts_["recoveries"];
    for (const auto end = Clock::now() + kGiveUp;; std::this_thread::sleep_for(milliseconds(20))) {
      const absl::Status status = TryRecover();
      if (status.ok()) break;
      Require(!absl::IsDataLoss(status), "{}", status.ToString());
      Require(Clock::now() < end, "no recovery within {} s: {}", kGiveUp.count(), status.ToString());
    }
    Require(head_ >= committed_, "checkpoint c{} was acknowledged, the servers went back to step {}", committed_, head_);
    CheckBlocks(head_, "");
    for (const auto& [name, step] : published_) CheckBlocks(step, name);
  }

  absl::Status TryRecover() {
    ASSIGN_OR_RETURN(const std::vector<CheckpointInfo> list, client_.ListCheckpoints());
    const CheckpointInfo* newest = nullptr;
    for (const CheckpointInfo& info : list)
      if (info.id[0] == 'c' && (newest == nullptr || info.step >= newest->step)) newest = &info;
    if (newest != nullptr) RETURN_IF_ERROR(client_.RestoreCheckpoint(newest->id));
    return BeginRun();
  }

  uint64_t Head() { return Insist("status", [&] { return client_.GetStatus(); }).head_step; }

  void CheckBlocks(uint64_t step, const std::string& version) {
    for (const auto& [id, values] : Read(version)) CheckBlock(id, values, step, version.empty() ? "the head" : version);
    ++counts_["comparisons"];
  }

  std::vector<std::pair<BlockId, std::vector<float>>> Read(const std::string& version) {
    std::vector<std::pair<BlockId, std::vector<float>>> blocks;
    FetchOptions options;
    options.bank_version = version;
    options.int8 = version.ends_with(kInt8);
    std::vector<std::vector<uint8_t>> payloads;
    for (BlockId id : blocks_) payloads.emplace_back(spec_.BlockBytes(id.level));
    std::vector<BlockFetch> fetches;
    for (size_t i = 0; i < blocks_.size(); ++i) fetches.push_back({blocks_[i], absl::MakeSpan(payloads[i])});
    options.timeout = milliseconds(5000);
    Insist("fetch", [&]() -> absl::StatusOr<bool> {
      RETURN_IF_ERROR(client_.Fetch(absl::MakeSpan(fetches), options));
      return true;
    });
    for (size_t i = 0; i < blocks_.size(); ++i) {
      auto& [id, values] = blocks.emplace_back(blocks_[i], std::vector<float>(spec_.BlockElements(blocks_[i].level)));
      const absl::Span<const uint8_t> payload = absl::MakeConstSpan(payloads[i]).subspan(0, PayloadBytes(spec_, id.level, fetches[i].payload));
      if (options.int8) DequantisePayload(spec_, id.level, payload, absl::MakeSpan(values));
      else DecodePayload(payload, spec_.dtype, absl::MakeSpan(values));
    }
    return blocks;
  }

  static float Expected(BlockId id, uint64_t step) {
    int64_t sum = 0;
    for (uint64_t s = 1; s <= step; ++s)
      for (uint32_t rank = 0; rank < kRanks; ++rank) sum += Gradient(s, id, rank);
    return static_cast<float>(sum);
  }

  // Every element that starts at zero holds minus the sum of all steps up to `step`.
  void CheckBlock(BlockId id, const std::vector<float>& values, uint64_t step, const std::string& version) const {
    const FfnLayerRange last = FfnLayer(spec_, id.level, spec_.layers - 1);
    const bool gone = id == kDoomed && (purged_ || (may_be_purged_ && values[last.down] == 0));
    const float expected = gone ? 0 : -Expected(id, step);
    const float tolerance = version.ends_with(kInt8) ? 1e-6f * std::abs(expected) : 0;  // of a row's scale, which is rounded
    for (uint64_t element = last.down; element < last.end; ++element) {
      Require(std::abs(values[element] - expected) <= tolerance, "block {} of {} at step {}: element {} is {}, expected {}", ToString(id), version, step, element,
              values[element], expected);
    }
  }

  MemoryClient& client_;
  AccessClient& access_;
  const BankSpec spec_;
  std::mt19937_64 random_;
  bool may_be_purged_, purged_ = false;          // the doomed block: a purge was begun, a purge was acknowledged
  std::vector<BlockId> blocks_;
  uint64_t epoch_ = 0, head_ = 0, first_ = 0;    // of the run that is active
  uint64_t committed_ = 0;                       // last acknowledged checkpoint
  std::map<std::string, uint64_t> published_;    // acknowledged versions and their steps
  std::map<std::string, uint64_t> counts_;
};

int Run(const Options& options) {
  MemoryClientOptions client_options;
  client_options.slot_map_path = options.slot_map;
  client_options.call_timeout = milliseconds(4000);
  auto client = MemoryClient::Connect(client_options);
  if (!client.ok()) {
    fmt::print(stderr, "cannot connect: {}\n", client.status().ToString());
    return 1;
  }
  client_options.call_timeout = std::chrono::seconds(20);  // of a purge
  auto access = AccessClient::Create(client_options);
  if (!access.ok()) {
    fmt::print(stderr, "cannot change access: {}\n", access.status().ToString());
    return 1;
  }
  Trainer trainer(client->get(), access->get(), options);
  try {
    if (options.check_only) {
      trainer.CheckNow();
    } else if (options.check_beside) {
      trainer.CheckBeside();
    } else {
      trainer.Begin();
      for (uint64_t round = 0; options.stop_file.empty() ? round < options.rounds : !std::filesystem::exists(options.stop_file); ++round) trainer.Round();
      trainer.CheckNow();
    }
  } catch (const Violation& violation) {
    fmt::print(stderr, "VIOLATION: {}\n", violation.what());
    return 1;
  }
  fmt::print("{}\n", nlohmann::json(trainer.counts()).dump());
  return 0;
}

}  // namespace
}  // namespace membank

int main(int argc, char** argv) {
  membank::Options options;
  CLI::App app("a trainer whose every block has a known value", "expected_state");
  app.add_option("--slot-map", options.slot_map, "Slot map of the servers")->required();
  app.add_option("--seed", options.seed, "Of the order of calls");
  app.add_option("--rounds", options.rounds, "Rounds to run");
  app.add_option("--stop-file", options.stop_file, "Run until this file exists, instead of --rounds");
  app.add_flag("--check-only", options.check_only, "Compare every block with the head's step, and end");
  app.add_flag("--check-beside", options.check_beside, "The same while another trainer works: with the steps the head may be at");
  CLI11_PARSE(app, argc, argv);
  return membank::Run(options);
}
