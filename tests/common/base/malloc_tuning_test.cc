#include "common/base/malloc_tuning.h"

#include <unistd.h>

#include <cstring>
#include <fstream>
#include <memory>
#include <vector>

#include "gtest/gtest.h"

namespace membank {
namespace {

uint64_t ResidentBytes() {
  std::ifstream file("/proc/self/statm");
  uint64_t size = 0, resident = 0;
  file >> size >> resident;
  return resident * static_cast<uint64_t>(::sysconf(_SC_PAGESIZE));
}

TEST(MallocTuning, FreedMemoryStaysUntilThereIsMoreOfItThanAllowed) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  GTEST_SKIP() << "the sanitizer has a malloc of its own";
#endif
  TuneMalloc();
  constexpr size_t kBytes = 8 << 20, kCount = 8;
  const uint64_t before = ResidentBytes();
  {
    std::vector<std::unique_ptr<char[]>> values;
    for (size_t i = 0; i < kCount; ++i) {
      values.emplace_back(new char[kBytes]);
      std::memset(values.back().get(), 1, kBytes);
    }
  }
  EXPECT_GT(ResidentBytes(), before + kBytes * (kCount - 1));
  KeepFreeMemoryBelow(uint64_t{1} << 40);
  EXPECT_GT(ResidentBytes(), before + kBytes * (kCount - 1));
  KeepFreeMemoryBelow(kBytes);
  EXPECT_LT(ResidentBytes(), before + kBytes);
}

}  // namespace
}  // namespace membank
