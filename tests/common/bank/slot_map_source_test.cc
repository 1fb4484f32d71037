#include "common/bank/slot_map_source.h"

#include <gtest/gtest.h>

#include <atomic>
#include <thread>

#include "common/base/file.h"

namespace membank {
namespace {

TEST(SlotMapSource, OfManyWhoReplaceAnEpochOneWins) {
  const std::string path = testing::TempDir() + "/slot_map_source.json";
  const SlotMap first = *SlotMap::Striped({{"m0", "h:0"}, {"m1", "h:1"}});
  ASSERT_TRUE(WriteFileAtomic(path, first.ToJson()).ok());
  std::atomic<int> won{0};
  std::vector<std::thread> threads;
  for (int i = 0; i < 8; ++i)
    threads.emplace_back([&, i] {
      SlotSet slot;
      slot.set(2 * i);
      const auto source = SlotMapSource::Open(path);
      const absl::Status replaced = (*source)->Replace(*first.Move(slot, {"m1", "h:1"}, {}));
      if (replaced.ok()) ++won;
      else EXPECT_EQ(replaced.code(), absl::StatusCode::kFailedPrecondition) << replaced;
    });
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(won, 1);
  const auto source = SlotMapSource::Open(path);
  EXPECT_EQ((*source)->Load()->epoch(), 2u);
  EXPECT_EQ((*source)->Load()->SlotsOf("m1").count(), kSlots / 2 + 1);
  EXPECT_FALSE(SlotMapSource::Open("").ok());
}

}  // namespace
}  // namespace membank
