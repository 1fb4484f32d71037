// Every memory type beside every kind of decoder: the written-out passes against a plain model with autograd (reference_model.h), the dense
// model where there is one, and the promise that an untouched bank changes nothing.
#include "common/bank/block_init.h"
#include "model_worker/model/bake.h"
#include "model_worker/model/layer_memory.h"
#include "model_worker/model/weights.h"
#include "tests/model_worker/model/golden.h"
#include "tests/model_worker/model/reference_model.h"

namespace membank {
namespace {

constexpr int64_t kWidths[] = {5, 3};

std::vector<torch::Tensor> BlocksOf(const MemoryBatch& memory) {
  std::vector<torch::Tensor> blocks;
  for (const MemoryLevel& level : memory)
    for (const MemoryGroup& group : level.groups) blocks.push_back(group.block);
  return blocks;
}

class MemoryTypesTest : public testing::TestWithParam<std::tuple<const char*, MemoryType>> {
 protected:
  void SetUp() override {
    torch::set_num_threads(2);
    torch::manual_seed(11);
  }
  static MemoryType Type() { return std::get<1>(GetParam()); }
  static AnchorWeights Weights(torch::Dtype dtype = torch::kFloat) {
    auto weights = LoadAnchor(GoldenPath(std::get<0>(GetParam())), dtype);
    EXPECT_TRUE(weights.ok()) << weights.status().ToString();
    return *std::move(weights);
  }
  static ModelConfig Config() { return Weights().config; }

  static BankSpec Spec(const std::vector<uint32_t>& layers) {
    BankSpec spec;
    spec.bank_id = "types";
    spec.type = Type();
    spec.fan_out = 2;
    spec.widths.assign(std::begin(kWidths), std::end(kWidths));
    spec.SetAnchor(AnchorShapeOf(Config()));
    spec.memory_layers = layers;
    spec.dtype = DType::kF32;
    spec.seed = 3;
    spec.anchor_fingerprint = spec.tree_fingerprint = "none";
    EXPECT_TRUE(spec.Validate().ok()) << spec.Validate();
    return spec;
  }

  // Three documents of 29, 4 and 15 tokens; the second has another block of level 1, the third none of level 2.
  static RaggedBatch Batch() {
    RaggedBatch batch;
    torch::manual_seed(12);
    batch.tokens = torch::randint(0, Config().vocab, {48}, torch::kLong);
    batch.segments = {{0, 29}, {29, 33}, {33, 48}};
    return batch;
  }
  static torch::Tensor Block(const BankSpec& spec, BlockId id, bool untouched) {
    const int64_t elements = static_cast<int64_t>(spec.BlockElements(id.level));
    torch::Tensor block = torch::empty({elements});
    if (untouched) InitBlock(spec, id, {block.data_ptr<float>(), static_cast<size_t>(elements)});
    else block = torch::randn({elements}) * (Type() == MemoryType::kKv ? 1.0 : 0.2);
    return block;
  }
  static MemoryBatch Memory(const std::vector<uint32_t>& layers, bool untouched, bool gradients, size_t bank = 0) {
    const BankSpec spec = Spec(layers);
    const auto group = [&](BlockId id, std::vector<std::pair<int64_t, int64_t>> rows) {
      MemoryGroup g{Block(spec, id, untouched), {}, std::move(rows)};
      if (gradients) g.gradient = torch::zeros_like(g.block);
      return g;
    };
    MemoryBatch memory;
    memory.push_back({kWidths[0], {group({1, 0}, {{0, 29}, {33, 48}}), group({1, 1}, {{29, 33}})}, Type(), layers, bank});
    memory.push_back({kWidths[1], {group({2, 1}, {{0, 33}})}, Type(), layers, bank});
    return memory;
  }
  static std::vector<uint32_t> LastLayer() { return {static_cast<uint32_t>(Config().layers - 1)}; }

  static torch::Tensor Logits(Transformer& model, const RaggedBatch& batch) {
    torch::NoGradGuard no_grad;
    return model.Logits(model.Forward(batch));
  }

  // Logits, loss and every gradient of `batch` against autograd; whether or not the anchor learns.
  static void ExpectEqualsReference(const RaggedBatch& batch, bool train_anchor) {
    const torch::Tensor targets = batch.tokens.roll(-1);
    Transformer model(Weights(), train_anchor);
    const torch::Tensor hidden = model.Forward(batch);
    model.Loss(hidden, targets).backward();

    AnchorWeights weights = Weights();
    std::vector<torch::Tensor> inputs;
    for (const torch::Tensor& block : BlocksOf(batch.memory)) inputs.push_back(block.clone().requires_grad_());
    const std::vector<torch::Tensor> blocks = inputs;
    std::vector<std::pair<std::string, torch::Tensor>> named;
    if (train_anchor) named = weights.Named();
    for (auto& [name, parameter] : named) inputs.push_back(parameter.requires_grad_());
    const torch::Tensor expected = reference::Model(weights, batch, blocks).Logits();
    EXPECT_LE(MaxAbs(model.Logits(hidden.detach()), expected), 2e-5);
    const auto exact = torch::autograd::grad({reference::CrossEntropy(expected, targets).mean()}, inputs);
    size_t i = 0;
    for (const MemoryLevel& level : batch.memory) {
      for (const MemoryGroup& group : level.groups) {
        EXPECT_GT(exact[i].abs().max().item<double>(), 1e-5) << "block " << i;
        EXPECT_LE(MaxAbs(group.gradient, exact[i]), 5e-6) << "block " << i;
        ++i;
      }
    }
    for (const auto& [name, parameter] : train_anchor ? model.weights().Named() : named) {
      EXPECT_LE(MaxAbs(parameter.grad(), exact[i]), 1e-5 * std::max(1.0, exact[i].abs().max().item<double>())) << name;
      ++i;
    }
  }
};

TEST_P(MemoryTypesTest, AnUntouchedBankChangesNoBit) {
  Transformer model(Weights(), false);
  RaggedBatch batch = Batch();
  const torch::Tensor plain = Logits(model, batch);
  batch.memory = Memory({}, /*untouched=*/true, false);
  EXPECT_TRUE(torch::equal(Logits(model, batch), plain));
  batch.memory = Memory({}, /*untouched=*/false, false);
  EXPECT_GT(MaxAbs(Logits(model, batch), plain), 1e-3);
}

TEST_P(MemoryTypesTest, LogitsAndGradientsEqualAutograd) {
  RaggedBatch batch = Batch();
  for (const bool train_anchor : {false, true}) {
    batch.memory = Memory({}, false, true);
    ExpectEqualsReference(batch, train_anchor);
  }
}

TEST_P(MemoryTypesTest, ChosenLayersEqualAutograd) {
  RaggedBatch batch = Batch();
  batch.memory = Memory(LastLayer(), false, true);
  ExpectEqualsReference(batch, false);
  batch.memory = Memory({0}, false, true);
  ExpectEqualsReference(batch, false);
  EXPECT_EQ(batch.memory[0].groups[0].block.numel(), static_cast<int64_t>(Spec({0}).BlockElements(1)));
}

// Another bank on top: of the same type in one layer, and of ffn memory.
TEST_P(MemoryTypesTest, StackedBanksEqualAutograd) {
  RaggedBatch batch = Batch();
  batch.memory = Memory({}, false, true);
  for (MemoryLevel& level : Memory(LastLayer(), false, true, /*bank=*/1)) batch.memory.push_back(std::move(level));
  const int64_t elements = 3 * Config().layers * Config().hidden * 2;
  batch.memory.push_back({2, {{torch::randn({elements}) * 0.2, torch::zeros({elements}), {{3, 40}}}}, MemoryType::kFfn, {}, 2});
  ExpectEqualsReference(batch, false);
}

TEST_P(MemoryTypesTest, CachedEqualsWhole) {
  Transformer model(Weights(), false);
  RaggedBatch batch = Batch();
  const MemoryBatch memory = Memory({}, false, false);
  batch.tokens = batch.tokens.narrow(0, 0, 29);
  batch.segments = {{0, 29}};
  const auto rows = [&](int64_t count) {
    MemoryBatch of_rows = memory;
    of_rows[0].groups.pop_back();
    for (MemoryLevel& level : of_rows) level.groups[0].rows = {{0, count}};
    return of_rows;
  };
  batch.memory = rows(29);
  const torch::Tensor whole = Logits(model, batch);
  KvCache cache = model.NewCache(29);
  for (int64_t at = 0; at < 29;) {
    const int64_t next = at == 0 ? 20 : at + 1;
    RaggedBatch part;
    part.tokens = batch.tokens.narrow(0, at, next - at);
    part.segments = {{0, next - at, &cache}};
    part.memory = rows(next - at);
    EXPECT_LE(MaxAbs(Logits(model, part), whole.narrow(0, at, next - at)), 1e-5) << "token " << at;
    at = next;
  }
}

TEST_P(MemoryTypesTest, Bf16IsCloseToFp32) {
  Transformer exact(Weights(), false), model(Weights(torch::kBFloat16), false);
  RaggedBatch batch = Batch();
  const torch::Tensor plain = Logits(exact, batch), plain_bf16 = Logits(model, batch);
  batch.memory = Memory({}, false, false);
  const torch::Tensor expected = Logits(exact, batch);
  for (MemoryLevel& level : batch.memory)
    for (MemoryGroup& group : level.groups) group.block = group.block.to(torch::kBFloat16);
  EXPECT_LE(Rms(Logits(model, batch), expected), 3 * Rms(plain_bf16, plain)) << "what the anchor alone is off by";
}

// One path is a wider FFN or a change of the projections.
class BakedTypesTest : public MemoryTypesTest {};
TEST_P(BakedTypesTest, TheBakedAnchorIsTheSameFunction) {
  for (const std::vector<uint32_t>& layers : {std::vector<uint32_t>(), LastLayer()}) {
    RaggedBatch batch = Batch();
    batch.memory = Memory(layers, false, false);
    batch.memory[0].groups.pop_back();
    std::vector<BakedLevel> path;
    for (MemoryLevel& level : batch.memory) {
      level.groups[0].rows = {{0, 48}};
      path.push_back({level.width, level.groups[0].block, level.type, level.layers});
    }
    Transformer model(Weights(), false);
    absl::StatusOr<AnchorWeights> baked = Bake(Weights(), path);
    ASSERT_TRUE(baked.ok()) << baked.status();
    Transformer dense(*std::move(baked), false);
    EXPECT_LE(MaxAbs(Logits(dense, {batch.tokens, batch.segments, {}}), Logits(model, batch)), 2e-5);
    path[0].width += 1;
    EXPECT_EQ(Bake(Weights(), path).status().code(), absl::StatusCode::kInvalidArgument);
    path[0].type = MemoryType::kKv;
    EXPECT_EQ(Bake(Weights(), path).status().code(), absl::StatusCode::kUnimplemented);
  }
}

TEST_P(MemoryTypesTest, ABlockOfAnotherSizeIsRefused) {
  Transformer model(Weights(), false);
  RaggedBatch batch = Batch();
  batch.memory = Memory({}, false, false);
  batch.memory[1].layers = {0};
  torch::NoGradGuard no_grad;
  EXPECT_THROW(model.Forward(batch), c10::Error);
}

std::string NameOf(const testing::TestParamInfo<std::tuple<const char*, MemoryType>>& info) {
  const std::string path = std::get<0>(info.param);
  return path.substr(path.rfind('/') + 1) + "_" + std::string(MemoryTypeName(std::get<1>(info.param)));
}

using testing::Combine;
using testing::Values;
INSTANTIATE_TEST_SUITE_P(Gated, MemoryTypesTest,
                         Combine(Values("tiny", "architectures/qwen2", "architectures/gemma3", "architectures/openlm"),
                                 Values(MemoryType::kFfn, MemoryType::kLoraQk, MemoryType::kLoraVo, MemoryType::kLoraFfn, MemoryType::kKv)),
                         NameOf);
INSTANTIATE_TEST_SUITE_P(Ungated, MemoryTypesTest,
                         Combine(Values("architectures/gpt_neox"), Values(MemoryType::kFfn, MemoryType::kLoraQk, MemoryType::kLoraVo, MemoryType::kKv)),
                         NameOf);
INSTANTIATE_TEST_SUITE_P(Gated, BakedTypesTest,
                         Combine(Values("tiny", "architectures/gemma3", "architectures/openlm"),
                                 Values(MemoryType::kFfn, MemoryType::kLoraQk, MemoryType::kLoraVo, MemoryType::kLoraFfn)),
                         NameOf);

}  // namespace
}  // namespace membank
