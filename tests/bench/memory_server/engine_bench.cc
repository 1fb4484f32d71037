// The memory server's engine against the limits of the machine (design/numbers.md), all in one process:
//   Stream4R3W        a loop with AdamW's four reads and three writes: the baseline of AdamW/*
//   AdamW/*           must reach 0.85 of it (28 bytes per element counted, CRC of the payload included)
//   Crc32cOfABlock, LocalRead (pinned, no copy), GenerateBlock
// Every loop is one thread, so rates are by CPU time: neighbours on a shared machine disturb them least.
// Run with --benchmark_enable_random_interleaving=true --benchmark_repetitions=5.
#include <benchmark/benchmark.h>
#include <unistd.h>

#include <filesystem>
#include <vector>

#include "common/bank/block_init.h"
#include "common/base/crc32c.h"
#include "common/base/malloc_tuning.h"
#include "memory_server/in_memory_block_store.h"
#include "memory_server/optimizer.h"
#include "memory_server/shard.h"

namespace membank {
namespace {

constexpr uint64_t kElements = 860160;  // a level-3 block of the 160M bank: 3 * 35 * 512 * 16
constexpr size_t kBlocks = 24;          // together far beyond the last-level cache

struct Block {
  Block() : payload(kElements * 4), next(kElements * 4), gradient(kElements * 4), m(kElements), v(kElements), w(kElements) {
    for (Buffer* buffer : {&payload, &next, &gradient}) std::fill_n(reinterpret_cast<float*>(buffer->data()), kElements, 1e-3f);
    std::fill(v.begin(), v.end(), 1e-6f);
  }
  Buffer payload, next, gradient;
  std::vector<float> m, v, w;
};

std::vector<Block>& Blocks() {
  static std::vector<Block>* const blocks = new std::vector<Block>(kBlocks);
  return *blocks;
}

// Vectorised like the optimizer's loop.
[[gnu::noinline]] void Stream(uint64_t n, const float* __restrict g, const float* __restrict in, float* __restrict out, float* __restrict m,
                              float* __restrict v) {
  for (uint64_t i = 0; i < n; ++i) {
    m[i] = m[i] + g[i];
    v[i] = v[i] + g[i];
    out[i] = in[i] + g[i];
  }
}

float* Floats(Buffer& buffer) { return reinterpret_cast<float*>(buffer.data()); }

void Report(benchmark::State& state, uint64_t bytes) {
  state.counters["GB/s"] = benchmark::Counter(double(bytes) * double(state.iterations()) / 1e9, benchmark::Counter::kIsRate);
}

void Stream4R3W(benchmark::State& state) {
  size_t i = 0;
  for (auto _ : state) {
    Block& b = Blocks()[i++ % kBlocks];
    Stream(kElements, Floats(b.gradient), Floats(b.payload), Floats(b.next), b.m.data(), b.v.data());
    benchmark::ClobberMemory();
  }
  Report(state, 28 * kElements);
}
BENCHMARK(Stream4R3W);

void AdamW(benchmark::State& state, DType bank, DType gradient_dtype) {
  RunSettings run;
  const StepFactors factors = MakeStepFactors(run, {1.0f, 1e-4f, 1e-3f}, 10);
  std::vector<Gradient> gradients(kBlocks);
  for (Gradient& gradient : gradients) {
    gradient = {gradient_dtype, Buffer(kElements * DTypeBytes(gradient_dtype))};
    EncodePayload(std::vector<float>(kElements, 1e-3f), gradient_dtype, gradient.bytes.span());
  }
  size_t i = 0;
  for (auto _ : state) {
    const size_t index = i++ % kBlocks;
    Block& b = Blocks()[index];
    BlockArrays arrays{kElements, nullptr, nullptr, b.next.data(), b.m.data(), b.v.data()};
    if (bank == DType::kF32) arrays.payload_in = Floats(b.payload);
    else arrays.weights = b.w.data();
    benchmark::DoNotOptimize(AdamWUpdate(factors, gradients[index], arrays));
  }
  // Counted as what moves: gradient, weights in and out (and the payload beside fp32 weights), m and v in and out.
  Report(state, kElements * (DTypeBytes(gradient_dtype) + 8 + 16 + (bank == DType::kBF16 ? 2 : 0)));
}
BENCHMARK_CAPTURE(AdamW, f32_bank_f32_gradient, DType::kF32, DType::kF32);
BENCHMARK_CAPTURE(AdamW, bf16_bank_bf16_gradient, DType::kBF16, DType::kBF16);

void Crc32cOfABlock(benchmark::State& state) {
  size_t i = 0;
  for (auto _ : state) benchmark::DoNotOptimize(Crc32c(Blocks()[i++ % kBlocks].payload.data(), kElements * 2));
  Report(state, kElements * 2);
}
BENCHMARK(Crc32cOfABlock);

BankSpec Spec() {
  BankSpec spec;
  spec.bank_id = "bench";
  spec.fan_out = 16;
  spec.widths = {256, 64, 16};
  spec.layers = 35;
  spec.hidden = 512;
  spec.anchor_fingerprint = spec.tree_fingerprint = "none";
  return spec;
}

void GenerateBlock(benchmark::State& state) {
  const BankSpec spec = Spec();
  Buffer payload(spec.BlockBytes(3));
  uint32_t cluster = 0;
  for (auto _ : state) InitBlockPayload(spec, {3, cluster++ % 4096}, payload.span());
  Report(state, payload.size());
}
BENCHMARK(GenerateBlock);

void LocalRead(benchmark::State& state) {
  const std::string directory = std::filesystem::temp_directory_path() / ("bench_shard." + std::to_string(::getpid()));
  ShardOptions options;
  options.data_directory = directory;
  options.server_id = "m0";
  options.open_store = InMemoryBlockStore::Open;
  {
    auto shard = Shard::Open(Spec(), *SlotMap::Striped({{"m0", "a:1"}}), options);
    if (!shard.ok()) {
      state.SkipWithError(std::string(shard.status().message()).c_str());
      return;
    }
    uint32_t cluster = 0;
    while (cluster < 64) benchmark::DoNotOptimize((*shard)->Read({3, cluster++}));  // generates and caches
    for (auto _ : state) benchmark::DoNotOptimize((*shard)->Read({3, cluster++ % 64}));
  }
  std::filesystem::remove_all(directory);
}
BENCHMARK(LocalRead);

}  // namespace
}  // namespace membank

int main(int argc, char** argv) {
  membank::TuneMalloc();
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  benchmark::RunSpecifiedBenchmarks();
  return 0;
}
