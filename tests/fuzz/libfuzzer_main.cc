// membank-fuzz: one fuzz target under libFuzzer.  MEMBANK_FUZZ_TARGET=gguf membank-fuzz DIRECTORY... [libFuzzer's options]
// Without the variable it lists the targets. tests/fuzz/run fuzzes all of them.
#include <cstdio>
#include <cstdlib>
#include <filesystem>

#include "tests/fuzz/fuzz_target.h"

namespace {

const membank::fuzz::Target& Chosen() {
  static const membank::fuzz::Target chosen = [] {
    const char* name = std::getenv("MEMBANK_FUZZ_TARGET");
    for (const membank::fuzz::Target& target : membank::fuzz::AllTargets()) {
      if (name == nullptr) std::printf("%s\n", std::string(target.name).c_str());
      else if (target.name == name) return target;
    }
    if (name != nullptr) std::fprintf(stderr, "membank-fuzz: unknown target '%s'; run it without MEMBANK_FUZZ_TARGET for their names\n", name);
    std::exit(name == nullptr ? 0 : 2);
  }();
  return chosen;
}

}  // namespace

extern "C" int LLVMFuzzerInitialize(int*, char***) {
  Chosen();
  if (const char* seeds = std::getenv("MEMBANK_FUZZ_SEEDS")) {  // a directory to write the target's seeds into
    std::filesystem::create_directories(seeds);
    int number = 0;
    for (const std::string& seed : Chosen().seeds()) {
      std::FILE* out = std::fopen((std::string(seeds) + "/seed-" + std::to_string(number++)).c_str(), "wb");
      std::fwrite(seed.data(), 1, seed.size(), out);
      std::fclose(out);
    }
  }
  return 0;
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  Chosen().run({reinterpret_cast<const char*>(data), size});
  return 0;
}
