// What durability costs a memory server: one shard on RocksDB, AdamW, bf16 blocks, 48 blocks of a step (57 MB of gradients, 340 MB of weights
// and moments). Prints one line of JSON with medians; the classes take turns, so that the machine's moods hit both.
//
//   durability_bench DIRECTORY      (on the disk that is meant; removed and created)
#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <filesystem>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/time/clock.h"
#include "fmt/format.h"
#include "memory_server/shard.h"

namespace membank {
namespace {

constexpr int kRounds = 9;

BankSpec Spec() {
  BankSpec spec;
  spec.bank_id = "bench";
  spec.fan_out = 16;
  spec.widths = {64, 16};
  spec.layers = 12;
  spec.hidden = 512;
  spec.dtype = DType::kBF16;
  spec.anchor_fingerprint = spec.tree_fingerprint = "none";
  return spec;
}

std::vector<BlockId> Touched() {
  std::vector<BlockId> blocks;
  for (uint32_t cluster = 0; cluster < 16; ++cluster) blocks.push_back({1, cluster});
  for (uint32_t cluster = 0; cluster < 32; ++cluster) blocks.push_back({2, cluster * 8});
  return blocks;
}

void Check(const absl::Status& status) {
  if (status.ok()) return;
  fmt::print(stderr, "durability_bench: error: {}\n", status.ToString());
  std::exit(1);
}

class Server {
 public:
  Server(const std::string& directory, Durability durability) {
    ShardOptions options;
    options.data_directory = directory;
    options.server_id = "m0";
    options.durability = durability;
    auto shard = Shard::Open(Spec(), *SlotMap::Striped({{"m0", "localhost:1"}}), options);
    Check(shard.status());
    shard_ = *std::move(shard);
    run_.run_id = "bench";
    Check(shard_->BeginRun(run_).status());
  }

  // Push is left out: it is the same for both.
  double StepSeconds() {
    const StepId id{run_.run_id, run_.epoch, ++step_};
    auto push = shard_->BeginPush(id, 0);
    Check(push.status());
    for (const BlockId block : Touched()) {
      Buffer gradient(Spec().BlockBytes(block.level));
      std::fill_n(gradient.data(), gradient.size(), uint8_t{0x31});
      Check((*push)->AddBlock(block, {DType::kBF16, std::move(gradient)}));
    }
    Check((*push)->Finish().status());
    const absl::Time start = absl::Now();
    Check(shard_->PrepareStep(id, absl::InfiniteFuture()).status());
    Check(shard_->ApplyStep(id, {1.0f, 1e-4f, 1e-3f}).status());
    return absl::ToDoubleSeconds(absl::Now() - start);
  }
  Shard& shard() { return *shard_; }
  uint64_t step() const { return step_; }

 private:
  std::unique_ptr<Shard> shard_;
  RunSettings run_;
  uint64_t step_ = 0;
};

// Checkpoints beside steps: how long a snapshot stops them, how long a step takes while the cut is written, how long the writing takes.
struct Beside {
  std::vector<double> snapshot, step, writing;
};

void CheckpointBesideSteps(Server& server, int number, Beside* beside) {
  const std::string id = fmt::format("c{}", number);
  const uint64_t at = server.step();
  const absl::Time start = absl::Now();
  Check(server.shard().SnapshotCheckpoint(id, at));
  beside->snapshot.push_back(absl::ToDoubleSeconds(absl::Now() - start));
  std::atomic<bool> written = false;
  std::thread writer([&] {
    Check(server.shard().PrepareCheckpoint(id, at));
    Check(server.shard().CommitCheckpoint(id));
    written = true;
  });
  do beside->step.push_back(server.StepSeconds());
  while (!written);
  writer.join();
  beside->writing.push_back(absl::ToDoubleSeconds(absl::Now() - start));
}

uint64_t GradientBytes() {
  uint64_t bytes = 0;
  for (const BlockId block : Touched()) bytes += Spec().BlockBytes(block.level);
  return bytes;
}

double PlainWriteSeconds(const std::string& directory) {
  const std::vector<uint8_t> bytes(GradientBytes(), 0x31);
  const int file = ::open((directory + "/plain").c_str(), O_WRONLY | O_CREAT | O_APPEND, 0644);
  const absl::Time start = absl::Now();
  size_t written = 0;
  while (written < bytes.size()) {
    const ssize_t n = ::write(file, bytes.data() + written, bytes.size() - written);
    if (n <= 0) Check(absl::ErrnoToStatus(errno, "write"));
    written += static_cast<size_t>(n);
  }
  if (::fdatasync(file) != 0) Check(absl::ErrnoToStatus(errno, "fdatasync"));
  const double seconds = absl::ToDoubleSeconds(absl::Now() - start);
  ::close(file);
  return seconds;
}

double Median(std::vector<double> values) {
  std::nth_element(values.begin(), values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2), values.end());
  return values[values.size() / 2];
}

void Run(const std::string& directory) {
  std::filesystem::remove_all(directory);
  std::filesystem::create_directories(directory);
  Server checkpoint(directory + "/checkpoint", Durability::kCheckpoint), step(directory + "/step", Durability::kStep);
  std::vector<double> without, with, plain;
  for (int round = -2; round < kRounds; ++round) {
    const double a = checkpoint.StepSeconds(), b = step.StepSeconds(), c = PlainWriteSeconds(directory);
    if (round < 0) continue;
    without.push_back(a);
    with.push_back(b);
    plain.push_back(c);
  }
  Beside beside;
  for (int number = 1; number <= 5; ++number) CheckpointBesideSteps(checkpoint, number, &beside);
  const double seconds = Median(without), logged = Median(with), written = Median(plain);
  fmt::print("{{\"gradient_mb\": {:.1f}, \"step_seconds\": {:.4f}, \"logged_step_seconds\": {:.4f}, \"plain_write_seconds\": {:.4f}, "
             "\"snapshot_seconds\": {:.6f}, \"step_beside_seconds\": {:.4f}, \"checkpoint_seconds\": {:.3f}}}\n",
             GradientBytes() / 1e6, seconds, logged, written, Median(beside.snapshot), Median(beside.step), Median(beside.writing));
  std::filesystem::remove_all(directory);
}

}  // namespace
}  // namespace membank

int main(int argc, char** argv) {
  if (argc != 2) {
    fmt::print(stderr, "usage: durability_bench DIRECTORY\n");
    return 2;
  }
  membank::Run(argv[1]);
}
