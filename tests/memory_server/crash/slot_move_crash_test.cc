// Three memory servers of durability class "step" in one process that dies at every single write, rename, fsync, ... of moves of slots between them,
// into a server that trains and into one that joins, with steps before, between and behind. Afterwards every acknowledged step is there, in every
// block, each on one owner: that of the slot map.
#include <cstdio>
#include <cstring>

#include "tests/memory_server/crash/dying.h"
#include "tests/memory_server/slot_cluster.h"

namespace membank {
namespace {

struct Told {
  uint64_t acknowledged;   // steps
  char map[64 << 10];      // the slot map: outside of the servers, and atomic
};

void Tell(const SlotMap& map, Told* told) { std::strncpy(told->map, map.ToJson().c_str(), sizeof(told->map) - 1); }

absl::Status Train(SlotCluster& cluster, Told* told) {
  RETURN_IF_ERROR(cluster.Step(told->acknowledged + 1, cluster.Blocks()));
  ++told->acknowledged;
  return absl::OkStatus();
}

absl::Status Move(SlotCluster& cluster, Told* told, const std::string& from, const std::string& to, const std::string& list) {
  ASSIGN_OR_RETURN(const SlotSet slots, ParseSlots(list));
  const std::string id = fmt::format("{}-{}-{}", from, to, list);
  RETURN_IF_ERROR(cluster.Copy(id, from, to, slots, false));
  RETURN_IF_ERROR(Train(cluster, told));
  RETURN_IF_ERROR(cluster.SealBoth(id, from, to));
  RETURN_IF_ERROR(cluster.Copy(id, from, to, slots, true));
  cluster.Replace(to, slots);
  Tell(cluster.map(), told);
  RETURN_IF_ERROR(cluster.Adopt());
  return Train(cluster, told);
}

absl::Status Work(SlotCluster& cluster, Told* told) {
  Tell(cluster.map(), told);
  for (const char* id : {"m0", "m1", "m2"}) RETURN_IF_ERROR(cluster.TryStart(id, Durability::kStep));
  RETURN_IF_ERROR(cluster.Begin(1));
  RETURN_IF_ERROR(Train(cluster, told));
  RETURN_IF_ERROR(cluster.Checkpoint("c1", 1));
  RETURN_IF_ERROR(Train(cluster, told));
  RETURN_IF_ERROR(Move(cluster, told, "m0", "m1", "0,4"));
  RETURN_IF_ERROR(Move(cluster, told, "m1", "m2", "1,4"));  // joins, and gets one that moved before
  return cluster.Checkpoint("c6", told->acknowledged);
}

void ExpectWhole(SlotCluster& cluster, const Told& told, bool and_again) {
  const auto map = SlotMap::FromJson(told.map);
  ASSERT_OK(map);
  cluster.SetMap(*map);
  ASSERT_NO_FATAL_FAILURE(cluster.StartAll());
  const auto head = cluster.GoOn();
  ASSERT_OK(head);
  ASSERT_GE(*head, told.acknowledged);
  ASSERT_LE(*head, told.acknowledged + 1);
  for (BlockId id : cluster.Blocks()) ASSERT_EQ(cluster.Count(id), static_cast<int>(*head)) << ToString(id);
  ASSERT_OK(cluster.Step(*head + 1, cluster.Blocks()));
  if (!and_again) return;
  ASSERT_NO_FATAL_FAILURE(cluster.StartAll());
  for (BlockId id : cluster.Blocks()) ASSERT_EQ(cluster.Count(id), static_cast<int>(*head) + 1) << ToString(id);
}

TEST(SlotMoveCrash, WhereverItDiesEveryAcknowledgedStepIsThere) {
  int n = 1;
  for (bool died = true; died; ++n) {
    Told* const told = SharedWithChild<Told>();
    SlotCluster cluster("crash", Durability::kStep);
    died = DiesAtCall(n, [&] {
      const absl::Status worked = Work(cluster, told);
      if (!worked.ok()) std::fprintf(stderr, "%s\n", worked.ToString().c_str());
      return worked.ok();
    });
    ASSERT_NO_FATAL_FAILURE(ExpectWhole(cluster, *told, n % 4 == 0)) << "died before call " << n << ", after " << told->acknowledged << " acknowledged steps";
    ::munmap(told, sizeof(Told));
  }
  std::printf("died at %d places\n", n - 2);
  EXPECT_GT(n, 250);
}

}  // namespace
}  // namespace membank
