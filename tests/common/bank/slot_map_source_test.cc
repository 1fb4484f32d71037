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
      const auto source = OpenSlotMapFile(path);
      const absl::Status replaced = (*source)->Replace(*first.Move(slot, {"m1", "h:1"}, {}));
      if (replaced.ok()) ++won;
      else EXPECT_EQ(replaced.code(), absl::StatusCode::kFailedPrecondition) << replaced;
    });
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(won, 1);
  const auto source = OpenSlotMapFile(path);
  EXPECT_EQ((*source)->Load()->epoch(), 2u);
  EXPECT_EQ((*source)->Load()->SlotsOf("m1").count(), kSlots / 2 + 1);
  EXPECT_FALSE(OpenSlotMapFile("").ok());
}

TEST(SlotMapSource, IsMadeOnceAndChangedByMany) {
  const std::string path = testing::TempDir() + "/slot_map_source_made.json";
  std::remove(path.c_str());
  const auto source = *OpenSlotMapFile(path);
  EXPECT_EQ(source->Load().status().code(), absl::StatusCode::kNotFound);
  ASSERT_TRUE(source->Create(*SlotMap::Striped({{"m0", "h:0"}, {"m1", "h:1"}})).ok());
  EXPECT_EQ(source->Create(*SlotMap::Striped({{"m2", "h:2"}})).code(), absl::StatusCode::kAlreadyExists);
  EXPECT_EQ(source->Load()->servers().size(), 2u);
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i)
    threads.emplace_back([&, i] {
      SlotSet slot;
      slot.set(2 * i);
      const auto changed = ChangeSlotMap((*OpenSlotMapFile(path)).get(), [&](const SlotMap& map) { return map.Move(slot, {"m1", "h:1"}, {}); });
      EXPECT_TRUE(changed.ok()) << changed.status();
    });
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(source->Load()->epoch(), 5u);
  EXPECT_EQ(source->Load()->SlotsOf("m1").count(), kSlots / 2 + 4);
  const auto refused = ChangeSlotMap(source.get(), [](const SlotMap& map) { return map.WithReplicas("m7", {}); });
  EXPECT_FALSE(refused.ok()) << "what cannot be changed is not tried again";
  source->Stop();
  source->AwaitChange();  // returns
}

}  // namespace
}  // namespace membank
