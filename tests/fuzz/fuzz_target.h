// The parsers of bytes that come from outside, each behind one function that takes any bytes. Two drivers run them: fuzz_test.cc (a plain
// ctest: the kept corpus and seeded random mutations) and libfuzzer_main.cc (clang, preset `fuzz`: coverage-guided, for as long as one likes).
// A target may refuse its input but must come back, without undefined behaviour and without allocating what the input does not pay for.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/types/span.h"

namespace membank::fuzz {

struct Target {
  std::string_view name;
  void (*run)(std::string_view input);
  std::vector<std::string> (*seeds)();  // well-formed inputs to start from
};

// All targets, by file.
std::vector<Target> TensorTargets();   // safetensors, GGUF, cluster tree
std::vector<Target> TextTargets();     // tokenizers
std::vector<Target> CorpusTargets();   // dictd, gzip, packed corpus, JSON Lines
std::vector<Target> BankTargets();     // bank spec, slot map, paths
std::vector<Target> StoreTargets();    // block records, checkpoint manifests
std::vector<Target> WireTargets();     // raw messages, status details, every call of the memory service
std::vector<Target> HttpTargets();     // bodies of the OpenAI surface

std::vector<Target> AllTargets();

// The file `name` of this process's scratch directory (in RAM where there is /dev/shm), holding `bytes`; the path.
std::string WriteScratch(const std::string& name, std::string_view bytes);
const std::string& ScratchDirectory();

std::string ReadSource(const std::string& path);  // a file of the checkout; the empty string when it is not there

// Takes numbers and pieces off the front of an input, for targets that need more than one byte string; past the end everything is 0.
class Pieces {
 public:
  explicit Pieces(std::string_view input) : left_(input) {}
  bool empty() const { return left_.empty(); }
  uint8_t Byte() { return left_.empty() ? 0 : static_cast<uint8_t>(Take(1)[0]); }
  // A piece with its 16-bit length in front; what is left when that is less.
  std::string_view Piece() {
    const size_t size = Byte() | Byte() << 8;
    return Take(std::min(size, left_.size()));
  }
  std::string_view Rest() { return Take(left_.size()); }

 private:
  std::string_view Take(size_t size) {
    const std::string_view piece = left_.substr(0, size);
    left_.remove_prefix(size);
    return piece;
  }
  std::string_view left_;
};

// What Pieces::Piece reads.
inline std::string MakePiece(std::string_view bytes) {
  std::string piece;
  piece += static_cast<char>(bytes.size());
  piece += static_cast<char>(bytes.size() >> 8);
  return piece.append(bytes);
}

// Lists nested `depth` times: recursion over parsed JSON overflows the stack on it.
inline std::string NestedLists(size_t depth) { return std::string(depth, '[') + std::string(depth, ']'); }

}  // namespace membank::fuzz
