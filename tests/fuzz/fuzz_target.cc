#include "tests/fuzz/fuzz_target.h"

#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>

namespace membank::fuzz {
namespace {

// Removed when the process exits.
struct Scratch {
  Scratch() {
    const std::filesystem::path base = std::filesystem::is_directory("/dev/shm") ? "/dev/shm" : std::filesystem::temp_directory_path();
    path = base / ("membank-fuzz-" + std::to_string(::getpid()));
    std::filesystem::create_directories(path);
  }
  ~Scratch() {
    std::error_code ignored;
    std::filesystem::remove_all(path, ignored);
  }
  std::string path;
};

}  // namespace

const std::string& ScratchDirectory() {
  static const Scratch scratch;
  return scratch.path;
}

std::string WriteScratch(const std::string& name, std::string_view bytes) {
  const std::string path = ScratchDirectory() + "/" + name;
  std::ofstream(path, std::ios::binary).write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  return path;
}

std::string ReadSource(const std::string& path) {
  const char* source = std::getenv("MEMBANK_SOURCE_DIR");
  std::ifstream in(std::string(source == nullptr ? "." : source) + "/" + path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

std::vector<Target> AllTargets() {
  std::vector<Target> all;
  for (auto* targets : {TensorTargets, TextTargets, CorpusTargets, BankTargets, StoreTargets, WireTargets, HttpTargets}) {
    for (const Target& target : targets()) all.push_back(target);
  }
  return all;
}

}  // namespace membank::fuzz
