#include "tests/model_worker/service/tiny_engine.h"

#include "tests/model_worker/serve/serve_fixture.h"

namespace membank::serve_test {
namespace {

class RealTinyEngine final : public TinyEngine {
 public:
  explicit RealTinyEngine(bool stacked) {
    EngineOptions options;
    options.threads = 1;  // tiny matrices: more threads only wait for each other
    options.max_queued_tokens = 2000;
    std::vector<ServedBank> banks = {{&memory_, "v1", nullptr}};
    if (stacked) banks.push_back({&private_, "v1", nullptr});
    auto engine = ModelEngine::Create(std::make_unique<Transformer>(TinyAnchor(), false), banks, &tokenizer_, options);
    EXPECT_TRUE(engine.ok()) << engine.status();
    engine_ = *std::move(engine);
  }
  Engine* engine() override { return engine_.get(); }
  const Tokenizer* tokenizer() override { return &tokenizer_; }
  void HoldBlock(BlockId id) override { memory_.Hold(id); }
  void FailBlock(BlockId id, absl::Status status) override { memory_.Fail(id, std::move(status)); }
  void ReleaseBlocks() override { memory_.Release(); }
  void FailPrivateBlock(BlockId id, absl::Status status) override { private_.Fail(id, std::move(status)); }

 private:
  ByteTokenizer tokenizer_;
  FakeMemory memory_, private_{PrivateSpec()};
  std::unique_ptr<Engine> engine_;
};

}  // namespace

std::unique_ptr<TinyEngine> TinyEngine::Create(bool stacked) { return std::make_unique<RealTinyEngine>(stacked); }

}  // namespace membank::serve_test
