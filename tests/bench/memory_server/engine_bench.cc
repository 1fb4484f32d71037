// The memory server's engine against the limits of the machine (design/numbers.md), all in one process:
//   Stream4R3W        a loop with AdamW's four reads and three writes: the baseline of Update/*
//   Update/*          every optimizer, kind of weights and of gradient, CRC of the payload included. AdamW in fp32 moves the baseline's 28
//                     bytes per element and must reach 0.85 of its rate; the others move fewer (counted), so arithmetic weighs more
//   Sum/*             a rank's contribution added to the sum; its baseline SumBaseline has nothing to decode
//   Crc32cOfABlock, LocalRead (pinned, no copy), GenerateBlock
// Every loop is one thread, so rates are by CPU time: neighbours on a shared machine disturb them least.
// Run with --benchmark_enable_random_interleaving=true --benchmark_repetitions=5.
#include <benchmark/benchmark.h>
#include <unistd.h>

#include <filesystem>
#include <vector>

#include "common/bank/block_init.h"
#include "common/bank/gradient_codec.h"
#include "common/base/crc32c.h"
#include "common/base/malloc_tuning.h"
#include "memory_server/in_memory_block_store.h"
#include "memory_server/optimizer.h"
#include "memory_server/shard.h"

namespace membank {
namespace {

constexpr uint64_t kElements = 860160;  // a level-3 block of the 160M bank: 3 * 35 * 512 * 16
constexpr BlockShape kShape{kElements / 512, 512};
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

enum class Weights { kF32, kMaster, kStochastic };

std::vector<Gradient> Gradients(DType dtype) {
  std::vector<Gradient> gradients;
  for (size_t i = 0; i < kBlocks; ++i) {
    Gradient& gradient = gradients.emplace_back(Gradient{dtype, Buffer(GradientBytes(dtype, kShape))});
    std::vector<float> values(kElements, 1e-3f);
    if (dtype == kI8Rows) EncodeInt8Rows(kShape, absl::MakeSpan(values), gradient.bytes.span());
    else EncodePayload(values, dtype, gradient.bytes.span());
  }
  return gradients;
}

void Update(benchmark::State& state, OptimizerKind kind, Weights weights, DType gradient_dtype) {
  RunSettings run;
  run.optimizer = kind;
  const StepFactors factors = MakeStepFactors(run, {1.0f, 1e-4f, 1e-3f}, 10);
  const std::vector<Gradient> gradients = Gradients(gradient_dtype);
  size_t i = 0;
  for (auto _ : state) {
    const size_t index = i++ % kBlocks;
    Block& b = Blocks()[index];
    BlockArrays arrays;
    arrays.shape = kShape;
    arrays.payload = weights == Weights::kF32 ? DType::kF32 : DType::kBF16;
    if (weights == Weights::kMaster) arrays.weights = b.w.data();
    arrays.payload_in = b.payload.data();
    arrays.payload_out = b.next.data();
    arrays.m = b.m.data();
    arrays.v = b.v.data();
    arrays.noise = {1, i, 3, static_cast<uint32_t>(index)};
    benchmark::DoNotOptimize(UpdateBlock(kind, factors, gradients[index], arrays));
  }
  // Counted as what moves: gradient, weights in and out (and the payload beside fp32 weights), moments in and out.
  const uint64_t weight_bytes = weights == Weights::kF32 ? 8 : weights == Weights::kMaster ? 10 : 4;
  const uint64_t moment_bytes = kind == OptimizerKind::kAdamW ? 16 : kind == OptimizerKind::kRowWiseAdamW ? 8 : 0;
  Report(state, GradientBytes(gradient_dtype, kShape) + kElements * (weight_bytes + moment_bytes));
  state.counters["Mparam/s"] = benchmark::Counter(double(kElements) * double(state.iterations()) / 1e6, benchmark::Counter::kIsRate);
}
BENCHMARK_CAPTURE(Update, adamw_f32_weights_f32_gradient, OptimizerKind::kAdamW, Weights::kF32, DType::kF32);
BENCHMARK_CAPTURE(Update, adamw_f32_beside_bf16_bf16_gradient, OptimizerKind::kAdamW, Weights::kMaster, DType::kBF16);
BENCHMARK_CAPTURE(Update, adamw_f32_beside_bf16_int8_gradient, OptimizerKind::kAdamW, Weights::kMaster, kI8Rows);
BENCHMARK_CAPTURE(Update, adamw_stochastic_bf16_bf16_gradient, OptimizerKind::kAdamW, Weights::kStochastic, DType::kBF16);
BENCHMARK_CAPTURE(Update, row_wise_adamw_f32_beside_bf16_bf16_gradient, OptimizerKind::kRowWiseAdamW, Weights::kMaster, DType::kBF16);
BENCHMARK_CAPTURE(Update, row_wise_adamw_stochastic_bf16_bf16_gradient, OptimizerKind::kRowWiseAdamW, Weights::kStochastic, DType::kBF16);
BENCHMARK_CAPTURE(Update, sgd_f32_weights_f32_gradient, OptimizerKind::kSgd, Weights::kF32, DType::kF32);

// What SumContributions does with a second rank, and the same bytes with nothing to decode.
[[gnu::noinline]] void Add3(uint64_t n, const float* __restrict values, float* __restrict sum) {
  for (uint64_t i = 0; i < n; ++i) sum[i] = sum[i] + values[i];
}

void Sum(benchmark::State& state, DType dtype) {
  const std::vector<Gradient> gradients = Gradients(dtype);
  size_t i = 0;
  for (auto _ : state) {
    const size_t index = i++ % kBlocks;
    AddContribution(kShape, gradients[index], Floats(Blocks()[index].next));
    benchmark::ClobberMemory();
  }
  Report(state, GradientBytes(dtype, kShape) + kElements * 8);
}
BENCHMARK_CAPTURE(Sum, f32, DType::kF32);
BENCHMARK_CAPTURE(Sum, bf16, DType::kBF16);
BENCHMARK_CAPTURE(Sum, int8, kI8Rows);

void SumBaseline(benchmark::State& state) {
  size_t i = 0;
  for (auto _ : state) {
    Block& b = Blocks()[i++ % kBlocks];
    Add3(kElements, Floats(b.gradient), Floats(b.next));
    benchmark::ClobberMemory();
  }
  Report(state, kElements * 12);
}
BENCHMARK(SumBaseline);

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
