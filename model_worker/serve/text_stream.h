// The text of one answer as its tokens come: whole UTF-8 sequences only, and nothing of a stop string. Text that may be the beginning of a
// stop string is held back until it is decided. One sequence, one thread; the tokenizer must outlive it.
#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "common/text/tokenizer.h"

namespace membank {

class TextStream {
 public:
  TextStream(const Tokenizer& tokenizer, std::vector<std::string> stop) : decoder_(tokenizer), stop_(std::move(stop)) {}

  // The text to show now. After a stop string was met `stopped()` is true and Push must not be called again.
  absl::StatusOr<std::string> Push(int32_t id);
  // What was held back; nothing when stopped.
  std::string Finish();

  bool stopped() const { return stopped_; }

 private:
  std::string Release();  // cuts what is decided off held_

  StreamDecoder decoder_;
  const std::vector<std::string> stop_;
  std::string held_;
  bool stopped_ = false;
};

}  // namespace membank
