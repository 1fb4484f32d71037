#include "common/bank/slot_plan.h"

#include <gtest/gtest.h>

#include <numeric>

namespace membank {
namespace {

const SlotServer kM0{"m0", "h:0"}, kM1{"m1", "h:1"}, kM2{"m2", "h:2"};

std::vector<uint64_t> Loads(const SlotMap& map, const std::vector<uint64_t>& bytes) {
  std::vector<uint64_t> loads(map.servers().size());
  for (uint32_t slot = 0; slot < kSlots; ++slot) loads[map.OwnerOfSlot(slot)] += bytes[slot];
  return loads;
}

SlotMap Execute(SlotMap map, const std::vector<SlotTransfer>& plan, const std::vector<std::string>& leave) {
  for (const SlotTransfer& transfer : plan) {
    EXPECT_TRUE((transfer.slots & ~map.SlotsOf(transfer.from)).none());
    map = *map.Move(transfer.slots, transfer.to, leave);
  }
  return map;
}

// A bank as the paper's: the slots of levels 1 and 2 are much heavier than the others.
std::vector<uint64_t> PaperBytes() {
  BankSpec spec;
  spec.bank_id = "paper";
  spec.fan_out = 16;
  spec.widths = {256, 64, 16};
  spec.layers = 35;
  spec.hidden = 512;
  spec.dtype = DType::kBF16;
  spec.anchor_fingerprint = spec.tree_fingerprint = "none";
  return SlotBytesOf(spec);
}

TEST(SlotPlan, ANewServerTakesItsShareAndNoMoreMoves) {
  const std::vector<uint64_t> bytes = PaperBytes();
  const uint64_t total = std::accumulate(bytes.begin(), bytes.end(), uint64_t{0});
  const SlotMap two = *SlotMap::Striped({kM0, kM1});
  const auto grow = PlanTransfers(two, bytes, {kM0, kM1, kM2});
  ASSERT_TRUE(grow.ok()) << grow.status();
  uint64_t moved = 0;
  for (const SlotTransfer& transfer : *grow) {
    EXPECT_EQ(transfer.to.id, "m2");
    moved += transfer.bytes;
  }
  EXPECT_NEAR(moved, total / 3.0, 0.03 * total);
  const SlotMap three = Execute(two, *grow, {});
  for (uint64_t load : Loads(three, bytes)) EXPECT_NEAR(load, total / 3.0, 0.03 * total);
  EXPECT_TRUE(PlanTransfers(three, bytes, {kM0, kM1, kM2})->empty());

  const auto shrink = PlanTransfers(three, bytes, {kM0, kM1});
  ASSERT_TRUE(shrink.ok()) << shrink.status();
  const SlotMap back = Execute(three, *shrink, {"m2"});
  ASSERT_EQ(back.servers().size(), 2u);
  for (uint64_t load : Loads(back, bytes)) EXPECT_NEAR(load, total / 2.0, 0.03 * total);
}

TEST(SlotPlan, ATransferInParts) {
  std::vector<uint64_t> bytes(kSlots);
  for (uint32_t slot : {3, 4, 5, 6, 7}) bytes[slot] = 40;
  bytes[900] = 1000;
  const SlotTransfer whole{"m0", kM1, *ParseSlots("3-7,100,900"), 1200};
  const std::vector<SlotTransfer> parts = SplitTransfer(whole, bytes, 100);
  std::vector<std::string> slots;
  SlotSet all;
  for (const SlotTransfer& part : parts) {
    slots.push_back(FormatSlots(part.slots));
    EXPECT_TRUE((all & part.slots).none());
    all |= part.slots;
    EXPECT_EQ(part.to.id, "m1");
  }
  EXPECT_EQ(slots, (std::vector<std::string>{"3-4", "5-6", "7,100", "900"}));
  EXPECT_EQ(all, whole.slots);
  EXPECT_EQ(SplitTransfer(whole, bytes, 2000).size(), 1u);
}

TEST(SlotPlan, ABankWithoutBytesIsSpreadBySlots) {
  const SlotMap one = *SlotMap::Striped({kM0});
  const auto plan = PlanTransfers(one, std::vector<uint64_t>(kSlots), {kM0, kM1});
  ASSERT_TRUE(plan.ok()) << plan.status();
  ASSERT_EQ(plan->size(), 1u);
  EXPECT_EQ((*plan)[0].slots.count(), kSlots / 2);
  EXPECT_EQ(PlanTransfers(one, std::vector<uint64_t>(kSlots), {}).status().code(), absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace membank
