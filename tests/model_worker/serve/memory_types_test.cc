// Banks of every memory type behind the engine: mixed memories in one batch, prompts in chunks, another bank stacked on the first.
#include "model_worker/model/bank_levels.h"
#include "tests/model_worker/serve/serve_fixture.h"

namespace membank::serve_test {
namespace {

BankSpec OfType(BankSpec spec, MemoryType type, std::vector<uint32_t> layers) {
  spec.type = type;
  spec.SetAnchor(AnchorShapeOf(TinyAnchor().config));
  spec.memory_layers = std::move(layers);
  return spec;
}

class MemoryTypesTest : public ServeTest, public ::testing::WithParamInterface<MemoryType> {
 protected:
  MemoryTypesTest() { banks_ = {{&typed_, "v1", nullptr}, {&second_, "v1", nullptr}}; }

  // Log-probabilities of every next token with the blocks of both banks.
  torch::Tensor Reference(const std::vector<int32_t>& tokens, const MemoryChoice& memory) {
    torch::NoGradGuard no_grad;
    Transformer model(TinyAnchor(), false);
    const int64_t n = static_cast<int64_t>(tokens.size());
    RaggedBatch batch;
    batch.tokens = torch::tensor(std::vector<int64_t>(tokens.begin(), tokens.end()));
    batch.segments = {{0, n, nullptr}};
    for (size_t bank = 0; bank <= memory.stacked.size(); ++bank) {
      const BankSpec& spec = bank == 0 ? typed_.spec() : second_.spec();
      const std::vector<BlockId> ids = engine_->BlocksOf(bank, bank == 0 ? memory : memory.stacked[0]).value();
      for (BlockId id : ids) {
        MemoryLevel& level = batch.memory.emplace_back(LevelOf(spec, id.level, bank));
        level.groups.push_back({torch::tensor(FakeMemory::Values(spec, id, 1)), torch::Tensor(), {{0, n}}});
      }
    }
    return model.Logits(model.Forward(batch)).log_softmax(1);
  }

  FakeMemory typed_{OfType(TinySpec(), GetParam(), {1})};
  FakeMemory second_{OfType(PrivateSpec(), MemoryType::kKv, {})};
};

TEST_P(MemoryTypesTest, ScoresEqualAFullForward) {
  EngineOptions options = Options();
  options.prefill_tokens = 40;
  Start(options);
  MemoryChoice both = Leaf(9);
  both.stacked = {{{MemoryMode::kFetched, 3, 5}, {}, {}, {}}};
  const std::vector<int32_t> tokens = Bytes("a question and what follows it"), text = Bytes(std::string(70, 'z') + "end");
  const std::vector<ScoreTask> tasks = {{tokens, 1, None()}, {tokens, 1, Leaf(5)}, {text, 1, both}, {tokens, 1, Generic()}, {tokens, 1, Leaf(9)}};
  const auto outcomes = Score(tasks);
  ASSERT_TRUE(outcomes.ok()) << outcomes.status();
  for (size_t i = 0; i < tasks.size(); ++i) {
    const torch::Tensor expected = Reference(tasks[i].tokens, tasks[i].memory);
    for (size_t t = 1; t < tasks[i].tokens.size(); ++t)
      ASSERT_NEAR((*outcomes)[i].logprobs[t - 1], expected[t - 1][tasks[i].tokens[t]].item<float>(), 1e-4) << i << " " << t;
  }
  EXPECT_GT(std::abs((*outcomes)[0].sum - (*outcomes)[1].sum), 1e-2) << "the bank changes the answer";
}

INSTANTIATE_TEST_SUITE_P(All, MemoryTypesTest,
                         ::testing::Values(MemoryType::kFfn, MemoryType::kLoraQk, MemoryType::kLoraVo, MemoryType::kLoraFfn, MemoryType::kKv),
                         [](const auto& type) { return std::string(MemoryTypeName(type.param)); });

}  // namespace
}  // namespace membank::serve_test
