// Speed of the model alone: training step (forward, loss, backward), prefill and decode, tokens per second, medians. train_control is the
// quickstart's step: one page with its own path and with the generic memory; train_paths and train_dense are a co-trained anchor with twelve
// paths in the batch, and with as many more units in its own FFN; train_lora_qk to train_kv are train_frozen with as many parameters of another
// memory type, train_late with ffn memory in the upper half of the layers. The others have the same shapes as eager.py beside it; tests/bench/run runs both in turn and prints the ratios. One JSON object per line on stdout.
#include <torch/torch.h>

#include <algorithm>
#include <chrono>
#include <functional>

#include "CLI/CLI.hpp"
#include "common/base/malloc_tuning.h"
#include "common/base/thread_tuning.h"
#include "fmt/format.h"
#include "model_worker/model/bank_levels.h"
#include "model_worker/model/weights.h"

namespace membank {
namespace {

double Median(int repeats, const std::function<void()>& work) {
  work();   // warm up: oneDNN's primitives, malloc's pages
  std::vector<double> seconds;
  for (int i = 0; i < repeats; ++i) {
    const auto start = std::chrono::steady_clock::now();
    work();
    seconds.push_back(std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
  }
  std::sort(seconds.begin(), seconds.end());
  return seconds[seconds.size() / 2];
}

void Report(const char* what, const char* dtype, double rate) {
  fmt::print("{{\"what\": \"{}\", \"dtype\": \"{}\", \"tokens_per_second\": {:.1f}}}\n", what, dtype, rate);
  std::fflush(stdout);
}

struct Sizes {
  int64_t tokens = 1008, document = 84, paths = 1;   // each path has its own blocks and an equal share of the rows
  int repeats = 5;
  MemoryType type = MemoryType::kFfn;                // of as many parameters as the ffn memory of widths 64 and 32 in the same layers
  std::vector<uint32_t> layers;
};

MemoryBatch MakeMemory(const ModelConfig& c, torch::Dtype dtype, int64_t rows, const Sizes& sizes, bool gradient) {
  MemoryBatch memory;
  BankSpec ffn, spec;
  spec.type = sizes.type;
  ffn.memory_layers = spec.memory_layers = sizes.layers;
  ffn.SetAnchor(AnchorShapeOf(c));
  spec.SetAnchor(AnchorShapeOf(c));
  for (const uint32_t width : {64, 32}) {
    spec.widths.push_back(static_cast<uint32_t>(width * ffn.UnitElements() / spec.UnitElements()));
    MemoryLevel& level = memory.emplace_back(LevelOf(spec, spec.depth(), /*bank=*/0));
    const int64_t paths = sizes.paths;
    for (int64_t path = 0; path < paths; ++path) {
      MemoryGroup& group = level.groups.emplace_back();
      group.block = torch::randn({static_cast<int64_t>(spec.BlockElements(spec.depth()))}).mul_(0.02).to(dtype);
      if (gradient) group.gradient = torch::zeros({group.block.numel()}, torch::kFloat);
      group.rows = {{path * rows / paths, (path + 1) * rows / paths}};
    }
  }
  return memory;
}

RaggedBatch MakeBatch(const Transformer& model, const Sizes& sizes, bool gradient) {
  RaggedBatch batch;
  batch.tokens = torch::randint(0, model.config().vocab, {sizes.tokens}, torch::kLong);
  for (int64_t begin = 0; begin < sizes.tokens; begin += sizes.document) {
    batch.segments.push_back({begin, std::min(begin + sizes.document, sizes.tokens), nullptr});
  }
  batch.memory = MakeMemory(model.config(), model.dtype(), sizes.tokens, sizes, gradient);
  return batch;
}

// The memory's 96 units as part of the anchor's FFN.
AnchorWeights Widened(AnchorWeights weights) {
  const int64_t extra = 96, d = weights.config.hidden;
  const auto random = [&](std::vector<int64_t> shape) { return torch::randn(shape).mul_(0.02).to(weights.embedding.scalar_type()); };
  weights.config.ffn_inner += extra;
  for (LayerWeights& l : weights.layers) {
    l.gate = torch::cat({l.gate, random({extra, d})}, 0);
    l.up = torch::cat({l.up, random({extra, d})}, 0);
    l.down = torch::cat({l.down, random({d, extra})}, 1);
  }
  return weights;
}

double Train(const AnchorWeights& weights, bool train_anchor, const Sizes& sizes) {
  Transformer model(weights, train_anchor);
  RaggedBatch batch = MakeBatch(model, sizes, true);
  if (sizes.paths == 0) batch.memory.clear();
  const torch::Tensor targets = torch::randint(0, model.config().vocab, {sizes.tokens}, torch::kLong);
  const double seconds = Median(sizes.repeats, [&] {
    model.Loss(model.Forward(batch), targets).backward();
    for (auto& [name, parameter] : model.weights().Named()) parameter.mutable_grad() = torch::Tensor();
  });
  return sizes.tokens / seconds;
}

double Prefill(Transformer& model, const Sizes& sizes) {
  torch::NoGradGuard no_grad;
  RaggedBatch batch = MakeBatch(model, sizes, false);
  const double seconds = Median(sizes.repeats, [&] {
    KvCache cache = model.NewCache(sizes.tokens);
    batch.segments = {{0, sizes.tokens, &cache}};
    model.Logits(model.Forward(batch).narrow(0, sizes.tokens - 1, 1));
  });
  return sizes.tokens / seconds;
}

double Decode(Transformer& model, int64_t sequences, int repeats) {
  torch::NoGradGuard no_grad;
  constexpr int64_t kSteps = 32, kPrompt = 64;
  const double seconds = Median(repeats, [&] {
    std::vector<KvCache> caches;
    for (int64_t i = 0; i < sequences; ++i) caches.push_back(model.NewCache(kPrompt + kSteps));
    for (KvCache& cache : caches) cache.length = kPrompt;   // contents do not matter for time
    for (KvCache& cache : caches) {
      for (size_t l = 0; l < cache.keys.size(); ++l) {
        cache.keys[l].zero_();
        cache.values[l].zero_();
      }
    }
    RaggedBatch batch;
    batch.memory = MakeMemory(model.config(), model.dtype(), sequences, {}, false);
    for (int64_t i = 0; i < sequences; ++i) batch.segments.push_back({i, i + 1, &caches[i]});
    batch.tokens = torch::zeros({sequences}, torch::kLong);
    for (int64_t step = 0; step < kSteps; ++step) batch.tokens = model.Logits(model.Forward(batch)).argmax(-1);
  });
  return kSteps * sequences / seconds;
}

void RunAll(const std::string& anchor, torch::Dtype dtype, const std::string& only, const Sizes& sizes) {
  const char* name = dtype == torch::kFloat ? "fp32" : "bf16";
  absl::StatusOr<AnchorWeights> weights = LoadAnchor(anchor, dtype);
  if (!weights.ok()) {
    fmt::print(stderr, "{}\n", weights.status().ToString());
    std::exit(1);
  }
  const auto wanted = [&](const char* what) { return only.empty() || only == what; };
  if (wanted("train_frozen")) Report("train_frozen", name, Train(*weights, false, sizes));
  for (const MemoryType type : {MemoryType::kLoraQk, MemoryType::kLoraVo, MemoryType::kLoraFfn, MemoryType::kKv}) {
    const std::string what = "train_" + std::string(MemoryTypeName(type));
    Sizes typed = sizes;
    typed.type = type;
    if (wanted(what.c_str())) Report(what.c_str(), name, Train(*weights, false, typed));
  }
  Sizes late = sizes;
  for (int64_t layer = weights->config.layers / 2; layer < weights->config.layers; ++layer) late.layers.push_back(static_cast<uint32_t>(layer));
  if (wanted("train_late")) Report("train_late", name, Train(*weights, false, late));
  if (wanted("train_control")) Report("train_control", name, Train(*weights, false, {160, 80, 2, 4 * sizes.repeats}));
  if (wanted("train_anchor")) Report("train_anchor", name, Train(*weights, true, sizes));
  if (wanted("train_paths")) Report("train_paths", name, Train(*weights, true, {sizes.tokens, sizes.document, 12, sizes.repeats}));
  if (wanted("train_dense")) Report("train_dense", name, Train(Widened(*weights), true, {sizes.tokens, sizes.document, 0, sizes.repeats}));
  Transformer model(*weights, false);
  if (wanted("prefill")) Report("prefill", name, Prefill(model, sizes));
  if (wanted("decode")) Report("decode", name, Decode(model, 1, sizes.repeats));
  if (wanted("decode_8")) Report("decode_8", name, Decode(model, 8, sizes.repeats));
}

}  // namespace
}  // namespace membank

int main(int argc, char** argv) {
  membank::TuneThreads(argv);
  membank::TuneMalloc();
  CLI::App app("Model speed: tokens per second of training, prefill and decode");
  std::string anchor, dtype = "bf16", only;
  membank::Sizes sizes;
  app.add_option("--anchor", anchor, "Hugging Face directory or GGUF")->required();
  app.add_option("--dtype", dtype)->check(CLI::IsMember({"bf16", "fp32"}));
  app.add_option("--only", only)->check(CLI::IsMember({"train_frozen", "train_control", "train_anchor", "train_paths", "train_dense", "prefill", "decode", "decode_8"}));
  app.add_option("--repeats", sizes.repeats);
  app.add_option("--tokens", sizes.tokens, "Rows of a training or prefill batch");
  app.add_option("--document", sizes.document, "Tokens of a document: attention stays inside");
  app.add_option("--paths", sizes.paths, "Distinct paths of the batch");
  CLI11_PARSE(app, argc, argv);
  torch::manual_seed(0);
  torch::set_num_threads(2);
  membank::RunAll(anchor, dtype == "bf16" ? torch::kBFloat16 : torch::kFloat, only, sizes);
}
