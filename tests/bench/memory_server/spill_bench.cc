// What a bank larger than RAM costs (design/numbers.md), on the disk of --directory (default: the temporary directory). Prints one JSON object
// per line: figure, value, unit, baseline, baseline_value, target; the ratio is value / baseline_value.
//   write-back     blocks of 0.86M parameters overwritten three times in random order, against write + fdatasync of as many bytes, in turns
//   read-back      state and payload of a block from the head stores, against pread of as many bytes
//   RAM            growth of the process's resident set over payloads and optimizer state, at a budget and without one
//   checkpoint     of a clean store, and with 100 MB dirty
#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <fstream>
#include <random>
#include <vector>

#include "absl/time/clock.h"
#include "common/bank/block_init.h"
#include "common/base/crc32c.h"
#include "common/base/malloc_tuning.h"
#include "fmt/format.h"
#include "memory_server/block_image.h"
#include "memory_server/rocksdb_store.h"
#include "memory_server/shard.h"

namespace membank {
namespace {

constexpr size_t kImages = 80;        // 12 MB each
constexpr size_t kImagesPerWrite = 6;  // 64 MB, as the writer does

BankSpec Spec() {
  BankSpec spec;
  spec.bank_id = "bench";
  spec.fan_out = 16;
  spec.widths = {0, 0, 16};  // level 3 of the 160M bank alone
  spec.layers = 35;
  spec.hidden = 512;
  spec.anchor_fingerprint = spec.tree_fingerprint = "none";
  return spec;
}

void Check(const absl::Status& status) {
  if (status.ok()) return;
  fmt::print(stderr, "bench_spill: {}\n", status.ToString());
  std::exit(1);
}
template <typename T>
T Value(absl::StatusOr<T> result) {
  Check(result.status());
  return *std::move(result);
}

double Seconds(const std::function<void()>& work) {
  const auto start = std::chrono::steady_clock::now();
  work();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

void Row(std::string_view figure, double value, std::string_view unit, std::string_view baseline, double baseline_value, double target) {
  fmt::print(R"({{"figure": "{}", "value": {:.4f}, "unit": "{}", "baseline": "{}", "baseline_value": {:.4f}, "target": {}}})"
             "\n", figure, value, unit, baseline, baseline_value, target);
  std::fflush(stdout);
}

double Median(std::vector<double> values) {
  std::nth_element(values.begin(), values.begin() + values.size() / 2, values.end());
  return values[values.size() / 2];
}

uint64_t ResidentBytes() {
  std::ifstream file("/proc/self/statm");
  uint64_t size = 0, resident = 0;
  file >> size >> resident;
  return resident * static_cast<uint64_t>(::sysconf(_SC_PAGESIZE));
}

void WriteAndSync(const std::string& path, absl::Span<const uint8_t> bytes, int times) {
  const int fd = ::open(path.c_str(), O_CREAT | O_TRUNC | O_WRONLY | O_CLOEXEC, 0644);
  for (int i = 0; i < times; ++i)
    for (size_t done = 0; done < bytes.size();) {
      const ssize_t n = ::write(fd, bytes.data() + done, bytes.size() - done);
      if (n <= 0) Check(absl::ErrnoToStatus(errno, "write " + path));
      done += static_cast<size_t>(n);
    }
  if (::fdatasync(fd) != 0) Check(absl::ErrnoToStatus(errno, "fdatasync " + path));
  ::close(fd);
}

void WriteBack(const std::string& root) {
  const BankSpec spec = Spec();
  const auto buffers = BufferPool::Create(0);
  HeadStores stores;
  stores.weights = Value(RocksDbStore::Open(root + "/weights", StoreAccess::kReadWrite));
  stores.state = Value(RocksDbStore::Open(root + "/state", StoreAccess::kReadWrite));
  auto state = std::make_shared<TrainState>(buffers);
  const uint64_t array = spec.BlockElements(3) * sizeof(float);
  std::mt19937 random(1);
  for (Buffer* buffer : {&state->weights, &state->m, &state->v}) {
    *buffer = buffers->Acquire(array);
    for (size_t i = 0; i < array; i += 4) *reinterpret_cast<uint32_t*>(buffer->data() + i) = random();
  }
  Buffer payload = buffers->Acquire(spec.BlockBytes(3));
  std::copy_n(state->m.data(), payload.size(), payload.data());
  const uint32_t crc = Crc32c(payload.data(), payload.size());
  const SharedBuffer shared = buffers->Share(std::move(payload));

  std::vector<uint32_t> clusters;
  for (int round = 0; round < 3; ++round)
    for (uint32_t cluster = 0; cluster < kImages; ++cluster) clusters.push_back(cluster);
  std::shuffle(clusters.begin(), clusters.end(), random);
  std::vector<double> ours, raw;
  for (size_t first = 0; first + kImagesPerWrite <= clusters.size(); first += kImagesPerWrite) {
    std::vector<BlockImage> images;
    std::sort(clusters.begin() + first, clusters.begin() + first + kImagesPerWrite);
    for (size_t i = first; i < first + kImagesPerWrite; ++i)
      if (i == first || clusters[i] != clusters[i - 1]) images.push_back({{3, clusters[i]}, 1, crc, shared, state});
    const double bytes = static_cast<double>(images.size() * images[0].bytes());
    ours.push_back(bytes / 1e9 / Seconds([&] { Check(WriteImages(stores, images)); }));
    const int times = static_cast<int>(bytes / static_cast<double>(array));
    raw.push_back(times * static_cast<double>(array) / 1e9 / Seconds([&] { WriteAndSync(root + "/raw", state->m.span(), times); }));
  }
  Row("write-back of dirty blocks", Median(ours), "GB/s", "disk write + fdatasync", Median(raw), 0.5);

  std::vector<double> read, pread;
  Buffer target(state->bytes());
  for (uint32_t cluster = 0; cluster < kImages; ++cluster) {
    read.push_back(Seconds([&] {
      Check(ReadState(stores, spec, {3, cluster}, 1, buffers).status());
      Check(ReadPayload(stores, spec, {3, cluster}, buffers.get()).status());
    }));
    pread.push_back(Seconds([&] {
      const int fd = ::open((root + "/raw").c_str(), O_RDONLY | O_CLOEXEC);
      if (::pread(fd, target.data(), target.size(), 0) < 0) Check(absl::ErrnoToStatus(errno, "pread"));
      ::close(fd);
    }));
  }
  const double block = static_cast<double>(state->bytes() + shared->size()) / 1e9;
  Row("read-back of a block, in the page cache", block / Median(read), "GB/s", "pread of the same bytes", static_cast<double>(state->bytes()) / 1e9 / Median(pread), 0);
}

class Bank {
 public:
  Bank(const std::string& directory, uint64_t budget) {
    std::filesystem::remove_all(directory);
    ShardOptions options;
    options.data_directory = directory;
    options.server_id = "m0";
    options.memory_budget_bytes = budget;
    options.generated_cache_bytes = 0;
    shard_ = Value(Shard::Open(Spec(), *SlotMap::Striped({{"m0", "a:1"}}), options));
    Check(shard_->BeginRun({"run"}).status());
  }
  // One step over one block.
  void Train(uint32_t cluster) {
    const StepId step{"run", 1, ++step_};
    auto push = Value(shard_->BeginPush(step, 0));
    Buffer gradient(Spec().BlockElements(3) * 2);
    std::fill_n(reinterpret_cast<uint16_t*>(gradient.data()), Spec().BlockElements(3), FloatToBF16(1e-3f));
    Check(push->AddBlock({3, cluster}, {DType::kBF16, std::move(gradient)}));
    Check(push->Finish().status());
    Check(shard_->PrepareStep(step, absl::InfiniteFuture()).status());
    Check(shard_->ApplyStep(step, {1, 1e-4f, 0}).status());
  }
  double CheckpointMilliseconds() {
    const std::string id = fmt::format("c{}", step_ * 100 + checkpoints_++);
    const double seconds = Seconds([&] { Check(shard_->PrepareCheckpoint(id, step_)); });
    Check(shard_->CommitCheckpoint(id));
    return seconds * 1e3;
  }
  uint64_t payload_bytes() const { return shard_->Status().table.resident_bytes; }

 private:
  std::unique_ptr<Shard> shard_;
  uint64_t step_ = 0, checkpoints_ = 0;
};

void Ram(const std::string& directory, uint64_t budget, uint32_t blocks, std::string_view figure) {
  const uint64_t before = ResidentBytes();
  Bank bank(directory, budget);
  for (uint32_t cluster = 0; cluster < blocks; ++cluster) bank.Train(cluster);
  for (uint32_t cluster = 0; cluster < blocks; cluster += 2) bank.Train(cluster);
  const double payload = static_cast<double>(bank.payload_bytes()) / 1e6, resident = static_cast<double>(ResidentBytes() - before) / 1e6;
  Row(figure, payload, "MB", "resident memory for them", resident, 0.926);  // at most 8 % over it
}

void Checkpoints(const std::string& directory) {
  Bank bank(directory, 0);
  for (uint32_t cluster = 0; cluster < 160; ++cluster) bank.Train(cluster);  // 1.9 GB
  bank.CheckpointMilliseconds();
  std::vector<double> clean, dirty;
  for (int round = 0; round < 9; ++round) {
    clean.push_back(bank.CheckpointMilliseconds());
    for (uint32_t cluster = 0; cluster < 8; ++cluster) bank.Train(8 * static_cast<uint32_t>(round) + cluster);  // 96 MB
    dirty.push_back(bank.CheckpointMilliseconds());
  }
  Row("checkpoints of a clean store per second", 1e3 / Median(clean), "/s", "10 ms each", 100, 1.0);
  Row("checkpoints with 100 MB dirty per second", 1e3 / Median(dirty), "/s", "200 ms each", 5, 1.0);
}

}  // namespace
}  // namespace membank

int main(int argc, char** argv) {
  membank::TuneMalloc();
  const std::string parent = argc > 1 ? argv[1] : std::filesystem::temp_directory_path().string();
  const std::string root = parent + "/bench_spill." + std::to_string(::getpid());
  std::filesystem::create_directories(root);
  membank::Ram(root + "/small", 1ull << 30, 250, "touched blocks in RAM, budget 1 GiB, bank 3 GB");
  membank::Ram(root + "/large", 0, 80, "touched blocks in RAM, no budget, bank 1 GB");
  membank::Checkpoints(root + "/checkpoints");
  membank::WriteBack(root);
  std::filesystem::remove_all(root);
}
