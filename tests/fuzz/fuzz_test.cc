// Every fuzz target over its seeds, its kept corpus (corpus/<target>/) and seeded random mutations of both. MEMBANK_FUZZ_RUNS and
// MEMBANK_FUZZ_SEED change how many and which, MEMBANK_FUZZ_KEEP=FILE keeps the input that is being run (for after a crash).
#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <random>

#include "common/base/file.h"
#include "gtest/gtest.h"
#include "tests/fuzz/fuzz_target.h"

namespace membank::fuzz {
namespace {

constexpr size_t kMaxInputBytes = 1 << 20;

uint64_t Setting(const char* name, uint64_t fallback) {
  const char* value = std::getenv(name);
  return value == nullptr ? fallback : std::strtoull(value, nullptr, 10);
}

class Mutator {
 public:
  Mutator(std::vector<std::string> pool, uint64_t seed) : pool_(std::move(pool)), random_(seed) {}

  std::string Next() {
    std::string input = pool_[Below(pool_.size())];
    for (uint64_t n = 1 + Below(6); n > 0; --n) Mutate(&input);
    if (input.size() > kMaxInputBytes) input.resize(kMaxInputBytes);
    return input;
  }

 private:
  uint64_t Below(uint64_t limit) { return limit == 0 ? 0 : random_() % limit; }

  void Mutate(std::string* input) {
    const size_t at = Below(input->size() + 1), length = std::min<size_t>(input->size() - at, 1 + Below(16));
    switch (Below(8)) {
      case 0: input->resize(at); break;
      case 1: input->erase(at, length); break;
      case 2: input->insert(at, input->substr(Below(input->size() + 1), length)); break;
      case 3: input->insert(at, 1, static_cast<char>(random_())); break;
      case 4: Overwrite(input, at); break;
      case 5: ReplaceNumber(input); break;
      case 6: {
        const std::string& other = pool_[Below(pool_.size())];
        input->replace(at, length, other.substr(Below(other.size() + 1), 1 + Below(64)));
        break;
      }
      default:
        if (at < input->size()) (*input)[at] ^= static_cast<char>(1 << Below(8));
    }
  }

  // One to eight bytes of an integer at the edge of something.
  void Overwrite(std::string* input, size_t at) {
    static constexpr uint64_t kEdges[] = {0, 1, 0x7f, 0x80, 0xff, 0x7fff, 0xffff, 0x10000, 0x7fffffff, 0x80000000, 0xffffffff, 0x100000000,
                                          0x7fffffffffffffff, 0x8000000000000000, 0xffffffffffffffff};
    const uint64_t value = kEdges[Below(std::size(kEdges))];
    const size_t bytes = std::min<size_t>(input->size() - at, size_t{1} << Below(4));
    for (size_t i = 0; i < bytes; ++i) (*input)[at + i] = static_cast<char>(value >> (8 * i));
  }

  void ReplaceNumber(std::string* input) {
    static constexpr const char* kNumbers[] = {"0", "-1", "2147483648", "4294967296", "9223372036854775808", "18446744073709551615", "1e308", "1e999",
                                               "0.5", "null", "\"\"", "[]", "{}", "true"};
    const size_t from = Below(input->size() + 1), begin = input->find_first_of("0123456789", from);
    if (begin == std::string::npos) return;
    const size_t end = std::min(input->find_first_not_of("0123456789", begin), input->size());
    input->replace(begin, end - begin, kNumbers[Below(std::size(kNumbers))]);
  }

  const std::vector<std::string> pool_;
  std::mt19937_64 random_;
};

// Writes the input first, so that a crash leaves it behind.
void RunKept(const Target& target, const std::string& input) {
  const char* keep = std::getenv("MEMBANK_FUZZ_KEEP");
  if (keep != nullptr) std::ofstream(keep, std::ios::binary).write(input.data(), static_cast<std::streamsize>(input.size()));
  target.run(input);
}

class Fuzz : public testing::TestWithParam<Target> {};

TEST_P(Fuzz, SurvivesItsCorpusAndMutations) {
  const Target& target = GetParam();
  std::vector<std::string> pool = target.seeds();
  ASSERT_FALSE(pool.empty());
  for (const std::string& seed : pool) ASSERT_FALSE(seed.empty());
  const char* source = std::getenv("MEMBANK_SOURCE_DIR");
  const std::filesystem::path corpus = std::filesystem::path(source == nullptr ? "." : source) / "tests/fuzz/corpus" / target.name;
  std::vector<std::filesystem::path> files;
  if (std::filesystem::exists(corpus)) {
    for (const auto& entry : std::filesystem::directory_iterator(corpus)) files.push_back(entry.path());
  }
  std::sort(files.begin(), files.end());
  for (const auto& path : files) pool.push_back(*ReadFile(path));
  for (const std::string& input : pool) RunKept(target, input);

  const uint64_t seed = Setting("MEMBANK_FUZZ_SEED", 1), runs = Setting("MEMBANK_FUZZ_RUNS", 2000);
  SCOPED_TRACE("MEMBANK_FUZZ_SEED=" + std::to_string(seed));
  std::erase_if(pool, [](const std::string& input) { return input.size() > 65536; });  // mutated copies of the huge ones cost much and find little
  Mutator mutator(std::move(pool), seed);
  const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(Setting("MEMBANK_FUZZ_SECONDS", 2));
  uint64_t done = 0;
  while (done < runs && std::chrono::steady_clock::now() < end) {
    RunKept(target, mutator.Next());
    ++done;
  }
  std::printf("%s: %zu kept inputs, %llu mutations\n", std::string(target.name).c_str(), files.size(), static_cast<unsigned long long>(done));
}

INSTANTIATE_TEST_SUITE_P(Targets, Fuzz, testing::ValuesIn(AllTargets()), [](const auto& info) { return std::string(info.param.name); });

}  // namespace
}  // namespace membank::fuzz
