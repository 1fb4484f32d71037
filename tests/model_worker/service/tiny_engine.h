// A real engine over a tiny random model and a bank in memory, or two stacked on each other, without Torch in this header.
#pragma once

#include <memory>

#include "model_worker/serve/engine.h"

namespace membank::serve_test {

class TinyEngine {
 public:
  virtual ~TinyEngine() = default;
  virtual Engine* engine() = 0;
  virtual const Tokenizer* tokenizer() = 0;
  virtual void HoldBlock(BlockId id) = 0;
  virtual void FailBlock(BlockId id, absl::Status status) = 0;
  virtual void ReleaseBlocks() = 0;
  virtual void FailPrivateBlock(BlockId id, absl::Status status) = 0;

  // `stacked`: with a bank "private" of fan-out 2 and depth 3 behind the first one.
  static std::unique_ptr<TinyEngine> Create(bool stacked = false);
};

}  // namespace membank::serve_test
