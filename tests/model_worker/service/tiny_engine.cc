#include "tests/model_worker/service/tiny_engine.h"

#include "tests/model_worker/serve/serve_fixture.h"

namespace membank::serve_test {
namespace {

class RealTinyEngine final : public TinyEngine {
 public:
  RealTinyEngine() {
    EngineOptions options;
    options.threads = 1;  // tiny matrices: more threads only wait for each other
    options.bank_version = "v1";
    options.max_queued_tokens = 2000;
    auto engine = ModelEngine::Create(std::make_unique<Transformer>(TinyAnchor(), false), &memory_, &tokenizer_, options);
    EXPECT_TRUE(engine.ok()) << engine.status();
    engine_ = *std::move(engine);
  }
  Engine* engine() override { return engine_.get(); }
  const Tokenizer* tokenizer() override { return &tokenizer_; }
  void HoldBlock(BlockId id) override { memory_.Hold(id); }
  void FailBlock(BlockId id, absl::Status status) override { memory_.Fail(id, std::move(status)); }
  void ReleaseBlocks() override { memory_.Release(); }

 private:
  ByteTokenizer tokenizer_;
  FakeMemory memory_;
  std::unique_ptr<Engine> engine_;
};

}  // namespace

std::unique_ptr<TinyEngine> TinyEngine::Create() { return std::make_unique<RealTinyEngine>(); }

}  // namespace membank::serve_test
