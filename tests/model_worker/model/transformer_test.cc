#include "model_worker/model/transformer.h"

#include "model_worker/model/weights.h"
#include "tests/model_worker/model/golden.h"

namespace membank {
namespace {

constexpr int64_t kWidths[] = {6, 4};

// The tiny golden model: three documents of 37, 5 and 22 tokens, of which the second has another level-2 block.
class TransformerTest : public testing::Test {
 protected:
  void SetUp() override {
    torch::set_num_threads(2);
    golden_ = ReadGolden("tiny.safetensors");
    ASSERT_FALSE(golden_.empty());
  }

  Transformer Load(torch::Dtype dtype, bool train_anchor) {
    auto weights = LoadAnchor(GoldenPath("tiny"), dtype);
    EXPECT_TRUE(weights.ok()) << weights.status().ToString();
    return Transformer(*std::move(weights), train_anchor);
  }

  RaggedBatch Batch(torch::Dtype dtype, bool memory, bool gradient) {
    RaggedBatch batch;
    batch.tokens = golden_["tokens"];
    batch.segments = {{0, 37}, {37, 42}, {42, 64}};
    if (!memory) return batch;
    const auto group = [&](const std::string& name, std::vector<std::pair<int64_t, int64_t>> rows) {
      MemoryGroup g{golden_["block." + name].to(dtype), {}, std::move(rows)};
      if (gradient) g.gradient = torch::zeros({g.block.numel()}, torch::kFloat);
      return g;
    };
    batch.memory = {{kWidths[0], {group("level1.0", {{0, 64}})}},
                    {kWidths[1], {group("level2.0", {{0, 37}, {42, 64}}), group("level2.1", {{37, 42}})}}};
    return batch;
  }

  std::map<std::string, torch::Tensor> golden_;
};

TEST_F(TransformerTest, LogitsAndLossEqualTransformers) {
  Transformer model = Load(torch::kFloat, false);
  torch::NoGradGuard no_grad;
  const torch::Tensor plain = model.Forward(Batch(torch::kFloat, false, false));
  EXPECT_LE(MaxAbs(model.Logits(plain), golden_["plain_logits"]), 1e-5);
  EXPECT_NEAR(model.Loss(plain, golden_["targets"]).item<double>(), golden_["plain_loss"].item<double>(), 1e-5);
  const torch::Tensor hidden = model.Forward(Batch(torch::kFloat, true, false));
  EXPECT_LE(MaxAbs(model.Logits(hidden), golden_["logits"]), 1e-5);
  EXPECT_NEAR(model.Loss(hidden, golden_["targets"]).item<double>(), golden_["loss"].item<double>(), 1e-5);
  EXPECT_NEAR(model.Loss(hidden, golden_["targets"], 100).item<double>(), golden_["loss"].item<double>() * 61 / 100, 1e-5);
}

TEST_F(TransformerTest, GradientsEqualAutograd) {
  for (const bool train_anchor : {true, false}) {
    Transformer model = Load(torch::kFloat, train_anchor);
    const RaggedBatch batch = Batch(torch::kFloat, true, true);
    model.Loss(model.Forward(batch), golden_["targets"]).backward();
    EXPECT_LE(MaxAbs(batch.memory[0].groups[0].gradient, golden_["gradient.block.level1.0"]), 2e-6);
    EXPECT_LE(MaxAbs(batch.memory[1].groups[0].gradient, golden_["gradient.block.level2.0"]), 2e-6);
    EXPECT_LE(MaxAbs(batch.memory[1].groups[1].gradient, golden_["gradient.block.level2.1"]), 2e-6);
    for (const auto& [name, parameter] : model.weights().Named()) {
      ASSERT_EQ(parameter.grad().defined(), train_anchor) << name;
      if (!train_anchor) continue;
      EXPECT_LE(MaxAbs(parameter.grad(), golden_["gradient." + name]), 2e-6) << name;
    }
  }
}

TEST_F(TransformerTest, GradientsAreAdded) {
  Transformer model = Load(torch::kFloat, false);
  const RaggedBatch batch = Batch(torch::kFloat, true, true);
  for (int i = 0; i < 2; ++i) model.Loss(model.Forward(batch), golden_["targets"]).backward();
  EXPECT_LE(MaxAbs(batch.memory[0].groups[0].gradient, 2 * golden_["gradient.block.level1.0"]), 4e-6);
}

TEST_F(TransformerTest, TenAdamWSteps) {
  Transformer model = Load(torch::kFloat, true);
  std::vector<torch::Tensor> parameters;
  for (const auto& [name, parameter] : model.weights().Named()) parameters.push_back(parameter);
  torch::optim::AdamW optimizer(parameters, torch::optim::AdamWOptions(1e-3).betas({0.9, 0.95}).weight_decay(0.1));
  const RaggedBatch batch = Batch(torch::kFloat, true, false);
  for (int64_t step = 0; step < 10; ++step) {
    optimizer.zero_grad();
    const torch::Tensor loss = model.Loss(model.Forward(batch), golden_["targets"]);
    EXPECT_NEAR(loss.item<double>(), golden_["adamw_losses"][step].item<double>(), 1e-5) << "step " << step;
    loss.backward();
    optimizer.step();
  }
}

TEST_F(TransformerTest, Bf16ErrorIsNoLargerThanTransformers) {
  Transformer model = Load(torch::kBFloat16, false);
  torch::NoGradGuard no_grad;
  const torch::Tensor logits = model.Logits(model.Forward(Batch(torch::kBFloat16, true, false)));
  EXPECT_LE(Rms(logits, golden_["logits"]), 1.5 * golden_["bf16_error"].item<double>());
}

TEST_F(TransformerTest, Bf16GradientsAreCloseToFp32) {
  Transformer model = Load(torch::kBFloat16, false);
  const RaggedBatch batch = Batch(torch::kBFloat16, true, true);
  model.Loss(model.Forward(batch), golden_["targets"]).backward();
  const torch::Tensor expected = golden_["gradient.block.level1.0"];
  EXPECT_LE(Rms(batch.memory[0].groups[0].gradient, expected), 0.05 * Rms(expected, torch::zeros_like(expected)));
}

TEST_F(TransformerTest, MixedPathsEqualEachSequenceAlone) {
  Transformer model = Load(torch::kFloat, false);
  torch::NoGradGuard no_grad;
  const RaggedBatch all = Batch(torch::kFloat, true, false);
  const torch::Tensor together = model.Logits(model.Forward(all));
  for (size_t i = 0; i < all.segments.size(); ++i) {
    const auto [begin, end, cache] = all.segments[i];
    RaggedBatch alone;
    alone.tokens = all.tokens.narrow(0, begin, end - begin);
    alone.segments = {{0, end - begin}};
    alone.memory = {{kWidths[0], {{all.memory[0].groups[0].block, {}, {{0, end - begin}}}}},
                    {kWidths[1], {{all.memory[1].groups[i == 1 ? 1 : 0].block, {}, {{0, end - begin}}}}}};
    EXPECT_LE(MaxAbs(model.Logits(model.Forward(alone)), together.narrow(0, begin, end - begin)), 1e-5) << "document " << i;
  }
}

TEST_F(TransformerTest, PathEqualsWiderDenseFfn) {
  Transformer model = Load(torch::kFloat, false);
  AnchorWeights wide = *LoadAnchor(GoldenPath("tiny"), torch::kFloat);
  torch::NoGradGuard no_grad;
  RaggedBatch batch = Batch(torch::kFloat, true, false);
  batch.memory[1].groups[0].rows = {{0, 64}};
  batch.memory[1].groups.pop_back();
  const int64_t hidden = wide.config.hidden;
  for (int64_t i = 0; i < wide.config.layers; ++i) {
    LayerWeights& l = wide.layers[i];
    for (size_t level = 0; level < 2; ++level) {
      const torch::Tensor w = batch.memory[level].groups[0].block.view({wide.config.layers, 3, kWidths[level], hidden})[i];
      l.gate = torch::cat({l.gate, w[0]}, 0);
      l.up = torch::cat({l.up, w[1]}, 0);
      l.down = torch::cat({l.down, w[2].t()}, 1).contiguous();
    }
  }
  wide.config.ffn_inner += kWidths[0] + kWidths[1];
  Transformer dense(wide, false);
  const torch::Tensor expected = dense.Logits(dense.Forward(Batch(torch::kFloat, false, false)));
  EXPECT_LE(MaxAbs(model.Logits(model.Forward(batch)), expected), 2e-6);
}

TEST_F(TransformerTest, UntouchedBlockChangesNothing) {   // W3 = 0 at version 0
  Transformer model = Load(torch::kFloat, false);
  torch::NoGradGuard no_grad;
  RaggedBatch batch = Batch(torch::kFloat, true, false);
  for (MemoryLevel& level : batch.memory) {
    for (MemoryGroup& group : level.groups) {
      group.block = group.block.clone();
      group.block.view({3, 3, level.width, 32}).select(1, 2).zero_();
    }
  }
  EXPECT_TRUE(torch::equal(model.Forward(batch), model.Forward(Batch(torch::kFloat, false, false))));
}

// Prefill in two chunks, then single tokens, two sequences in one batch, one with memory.
TEST_F(TransformerTest, CachedDecodeEqualsFullForward) {
  Transformer model = Load(torch::kFloat, false);
  torch::NoGradGuard no_grad;
  const torch::Tensor block = golden_["block.level1.0"];
  const auto memory = [&](int64_t rows) { return MemoryBatch{{kWidths[0], {{block, {}, {{0, rows}}}}}}; };
  RaggedBatch full;
  full.tokens = torch::cat({golden_["tokens"].narrow(0, 0, 37), golden_["tokens"].narrow(0, 42, 22)});
  full.segments = {{0, 37}, {37, 59}};
  full.memory = memory(37);
  const torch::Tensor expected = model.Logits(model.Forward(full));
  KvCache first = model.NewCache(37), second = model.NewCache(40);
  int64_t at_first = 0, at_second = 0;
  const std::pair<int64_t, int64_t> steps[] = {{20, 6}, {7, 7}, {2, 1}, {1, 1}, {1, 1}, {1, 1}};
  for (const auto& [n, m] : steps) {
    RaggedBatch batch;
    batch.tokens = torch::cat({full.tokens.narrow(0, at_first, n), full.tokens.narrow(0, 37 + at_second, m)});
    batch.segments = {{0, n, &first}, {n, n + m, &second}};
    batch.memory = memory(n);
    const torch::Tensor logits = model.Logits(model.Forward(batch));
    EXPECT_LE(MaxAbs(logits.narrow(0, 0, n), expected.narrow(0, at_first, n)), 1e-5) << "at " << at_first;
    EXPECT_LE(MaxAbs(logits.narrow(0, n, m), expected.narrow(0, 37 + at_second, m)), 1e-5) << "at " << at_second;
    at_first += n;
    at_second += m;
  }
  EXPECT_EQ(first.length, 32);
}

TEST_F(TransformerTest, MalformedBatchesAreRefused) {
  Transformer model = Load(torch::kFloat, false);
  torch::NoGradGuard no_grad;
  RaggedBatch batch = Batch(torch::kFloat, false, false);
  batch.segments.pop_back();
  EXPECT_THROW(model.Forward(batch), c10::Error);
  KvCache cache = model.NewCache(8);
  batch.segments = {{0, 64, &cache}};
  EXPECT_THROW(model.Forward(batch), c10::Error);
  EXPECT_EQ(cache.length, 0);
}

}  // namespace
}  // namespace membank
