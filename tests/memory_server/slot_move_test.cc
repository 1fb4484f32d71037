#include "memory_server/slot_move.h"

#include <map>
#include <random>

#include "tests/memory_server/slot_cluster.h"

namespace membank {
namespace {

struct Cluster : SlotCluster {
  explicit Cluster(const std::string& name, Durability durability = Durability::kCheckpoint) : SlotCluster(name, durability) { StartAll(); }
};

TEST(SlotMove, ASealRefusesStepsAndHoldsCheckpointsUntilItRunsOut) {
  Cluster cluster("seal");
  ASSERT_OK(cluster.Begin(1));
  ASSERT_OK(cluster.Step(1, cluster.Blocks()));
  const auto fence = cluster.mover("m0").Seal("a", 0, absl::Milliseconds(200));
  ASSERT_OK(fence);
  EXPECT_EQ(*fence, 2u);
  EXPECT_CODE(cluster.Step(2, cluster.Blocks()), kUnavailable, "push step 2 again");
  EXPECT_CODE(cluster.mover("m0").Seal("b", 0, kLong), kAborted, "the move a");
  const absl::Time before = absl::Now();
  ASSERT_OK(cluster.Checkpoint("c1", 1));  // waits
  EXPECT_GT(absl::Now() - before, absl::Milliseconds(100));
  EXPECT_CODE(cluster.mover("m0").Seal("a", 0, kLong), kAborted, "had run out");
  ASSERT_OK(cluster.Step(2, cluster.Blocks()));
  EXPECT_EQ(cluster.Count({2, 4}), 2);
}

TEST(SlotMove, ACheckpointThatHasBegunIsWrittenBeforeASeal) {
  Cluster cluster("begun");
  ASSERT_OK(cluster.Begin(1));
  ASSERT_OK(cluster.Step(1, cluster.Blocks()));
  ASSERT_OK(cluster.Snapshot("c1", 1));
  ASSERT_OK(cluster.Step(2, cluster.Blocks()));
  EXPECT_CODE(cluster.mover("m0").Seal("a", 0, kLong), kAborted, "has begun and is not written yet");
  ASSERT_OK(cluster.Checkpoint("c1", 1));
  ASSERT_OK(cluster.mover("m0").Seal("a", 0, kLong));
}

TEST(SlotMove, AServerThatJoinsKeepsTheFencesItHad) {
  Cluster cluster("fences");
  const RunSettings earlier{"earlier", 7, 1, 0, 1, OptimizerKind::kSgd};  // m2 was in a cluster before
  ASSERT_OK(cluster.shard("m2").BeginRun(earlier));
  cluster.Start("m2");
  ASSERT_OK(cluster.Begin(1));
  ASSERT_OK(cluster.Step(1, cluster.Blocks()));
  const SlotSet slots = *ParseSlots("0,2,4");
  ASSERT_OK(cluster.SealBoth("a", "m0", "m2"));
  ASSERT_OK(cluster.Copy("a", "m0", "m2", slots, true));
  cluster.Switch("m2", slots);
  ASSERT_OK(cluster.Step(2, cluster.Blocks()));
  cluster.Start("m2");
  EXPECT_CODE(cluster.shard("m2").BeginRun(earlier), kAborted, "run earlier epoch 7 is fenced");
  EXPECT_CODE(cluster.shard("m2").BeginRun({"r", 1, 1, 0, 1, OptimizerKind::kSgd}), kAborted, "run r epoch 1 is fenced");
}

TEST(SlotMove, ALogThatIsNotWrittenAnyMoreKeepsTheSlots) {
  Cluster cluster("step", Durability::kStep);
  ASSERT_OK(cluster.Begin(1));
  ASSERT_OK(cluster.Step(1, cluster.Blocks()));
  cluster.Start("m1", Durability::kCheckpoint);
  const SlotSet slots = *ParseSlots("0,2");
  EXPECT_CODE(cluster.mover("m1").Seal("a", 0, kLong), kFailedPrecondition, "commit a checkpoint");
  EXPECT_CODE(cluster.Copy("a", "m0", "m1", slots, false), kFailedPrecondition, "commit a checkpoint");
  EXPECT_CODE(cluster.mover("m1").Adopt(*cluster.map().Move(slots, {"m1", "h:1"}, {})), kFailedPrecondition, "commit a checkpoint");
  EXPECT_EQ(cluster.shard("m1").slot_map()->epoch(), 1u);
}

TEST(SlotMove, WithAStepLogNothingGoesBackBehindTheFence) {
  Cluster cluster("rewind", Durability::kStep);
  ASSERT_OK(cluster.Begin(1));
  for (uint64_t step : {1, 2, 3}) ASSERT_OK(cluster.Step(step, cluster.Blocks()));
  const SlotSet slots = *ParseSlots("0,2");
  ASSERT_OK(cluster.SealBoth("a", "m0", "m1"));
  ASSERT_OK(cluster.Copy("a", "m0", "m1", slots, true));
  cluster.Switch("m1", slots);
  for (uint64_t step : {4, 5}) ASSERT_OK(cluster.Step(step, cluster.Blocks()));
  for (const bool restarted : {false, true}) {
    if (restarted) cluster.Start("m1", Durability::kStep);
    EXPECT_CODE(cluster.shard("m1").Rewind(2), kOutOfRange, "cannot go to step 2: its newest slots came at step 3");
    for (const uint64_t back : {4, 3}) {
      for (const char* id : {"m0", "m1"}) ASSERT_OK(cluster.shard(id).Rewind(back));
      for (BlockId id : cluster.Blocks()) EXPECT_EQ(cluster.Count(id), static_cast<int>(back)) << ToString(id);
    }
    ASSERT_OK(cluster.Begin(4));
    for (uint64_t step : {4, 5}) ASSERT_OK(cluster.Step(step, cluster.Blocks()));
  }
}

// A lease that ran out: the images in the new owner's log are older than the head.
TEST(SlotMove, WithAStepLogASwitchBehindALiftedFenceGoesBackToTheCheckpoint) {
  for (const bool restarted : {false, true}) {
    Cluster cluster("late", Durability::kStep);
    ASSERT_OK(cluster.Begin(1));
    ASSERT_OK(cluster.Step(1, cluster.Blocks()));
    ASSERT_OK(cluster.Checkpoint("c1", 1));
    const SlotSet slots = *ParseSlots("0,2");
    ASSERT_OK(cluster.SealBoth("a", "m0", "m1"));
    ASSERT_OK(cluster.Copy("a", "m0", "m1", slots, true));
    for (const char* id : {"m0", "m1"}) cluster.mover(id).Unseal("a", true);
    ASSERT_OK(cluster.Step(2, cluster.Blocks()));
    cluster.Switch("m1", slots, restarted ? "m1" : "");
    EXPECT_EQ(cluster.Count({2, 0}), 1);
    EXPECT_EQ(cluster.Count({2, 1}), 1);  // the whole server
    EXPECT_EQ(cluster.Count({2, 6}), 2);  // m0
    ASSERT_OK(cluster.Restore("c1"));
    ASSERT_OK(cluster.Begin(2));
    ASSERT_OK(cluster.Step(2, cluster.Blocks()));
    cluster.Start("m1", Durability::kStep);
    for (BlockId id : cluster.Blocks()) EXPECT_EQ(cluster.Count(id), 2) << ToString(id);
  }
}

TEST(SlotMove, ACheckpointOlderThanAMoveIsCopiedOutOnce) {
  Cluster cluster("export");
  ASSERT_OK(cluster.Begin(1));
  ASSERT_OK(cluster.Step(1, cluster.Blocks()));
  ASSERT_OK(cluster.Checkpoint("c1", 1));
  const std::vector<std::string> before = cluster.Exported("c1");
  EXPECT_EQ(before.size(), cluster.Blocks().size());
  const SlotSet slots = *ParseSlots("0,2,8");
  ASSERT_OK(cluster.Copy("a", "m0", "m1", slots, false));
  EXPECT_EQ(cluster.Exported("c1"), before);  // m1 has them, too, but does not own them yet
  ASSERT_OK(cluster.SealBoth("a", "m0", "m1"));
  ASSERT_OK(cluster.Copy("a", "m0", "m1", slots, true));
  cluster.Switch("m1", slots);
  EXPECT_EQ(cluster.Exported("c1"), before);
}

TEST(SlotMove, ASealWaitsForTheStepsBeforeTheFence) {
  Cluster cluster("fence");
  ASSERT_OK(cluster.Begin(1));
  const auto push = cluster.shard("m0").BeginPush(cluster.Id(1), 0);
  ASSERT_OK(push);
  ASSERT_OK((*push)->Finish());
  const auto fence = cluster.mover("m0").Seal("a", 0, kLong);
  ASSERT_OK(fence);
  EXPECT_EQ(*fence, 2u);  // step 1 was pushed here: it counts by the old map
  EXPECT_CODE(cluster.mover("m0").AwaitSealed("a", Soon()), kDeadlineExceeded, "step 1");
  EXPECT_TRUE(cluster.mover("m0").State().sealed_by.empty());
  ASSERT_OK(cluster.Step(1, cluster.Blocks()));
  ASSERT_OK(cluster.mover("m0").AwaitSealed("a", Soon()));
  EXPECT_EQ(cluster.mover("m0").State().sealed_by, "a");
}

TEST(SlotMove, SlotsTakenWithoutAFinishedCopyGoBackToTheCheckpoint) {
  Cluster cluster("unfinished");
  ASSERT_OK(cluster.Begin(1));
  ASSERT_OK(cluster.Step(1, cluster.Blocks()));
  ASSERT_OK(cluster.Checkpoint("c1", 1));
  ASSERT_OK(cluster.Step(2, cluster.Blocks()));
  const SlotSet slots = *ParseSlots("0,2,4");
  ASSERT_OK(cluster.Copy("a", "m0", "m1", slots, false));
  cluster.Switch("m1", slots);  // without fence and last round
  EXPECT_EQ(cluster.Count({2, 0}), 1);
  EXPECT_EQ(cluster.Count({2, 1}), 1);  // the whole server: as after a crash
  EXPECT_EQ(cluster.Count({2, 6}), 2);  // m0
  EXPECT_CODE(cluster.Step(3, cluster.Blocks()), kFailedPrecondition, "no run is active");
  ASSERT_OK(cluster.Restore("c1"));
  ASSERT_OK(cluster.Begin(2));
  ASSERT_OK(cluster.Step(2, cluster.Blocks()));
  for (BlockId id : cluster.Blocks()) EXPECT_EQ(cluster.Count(id), 2) << ToString(id);
}

TEST(SlotMove, ACheckpointThatLacksSlotsIsRefusedWithBothEpochs) {
  Cluster cluster("lacks");
  ASSERT_OK(cluster.Begin(1));
  ASSERT_OK(cluster.Step(1, cluster.Blocks()));
  ASSERT_OK(cluster.Checkpoint("c1", 1));
  const SlotSet slots = *ParseSlots("0,2,4");
  const SlotMap moved = *cluster.map().Move(slots, {"m1", "h:1"}, {});
  const absl::Status adopted = cluster.mover("m1").Adopt(moved);  // nothing was copied at all
  EXPECT_CODE(adopted, kFailedPrecondition, "by slot map epoch 1, by epoch 2 it also has slots 0,2,4");
  EXPECT_EQ(cluster.Count({2, 1}), 1);  // nothing changed
}

TEST(SlotMove, AVersionTravelsAsItsDifferenceFromAnother) {
  Cluster cluster("delta");
  ASSERT_OK(cluster.Begin(1));
  ASSERT_OK(cluster.Checkpoint("c0", 0));
  ASSERT_OK(cluster.Step(1, cluster.Blocks()));
  ASSERT_OK(cluster.Checkpoint("c1", 1));
  ASSERT_OK(cluster.Step(2, {{2, 0}, {2, 6}, {2, 7}}));
  ASSERT_OK(cluster.Checkpoint("c2", 2));
  Shard& owner = cluster.shard("m0");
  for (const char* n : {"0", "1", "2"}) ASSERT_OK(owner.Publish(std::string("c") + n, std::string("v") + n));
  const SlotSet slots = cluster.map().SlotsOf("m0");
  const auto difference = [&](const std::string& version, const std::string& base) {
    std::vector<std::string> blocks;
    const absl::Status exported = cluster.mover("m0").ExportVersion(version, slots, base, [&](BlockId id, auto weights, auto) {
      blocks.push_back(ToString(id) + (weights.empty() ? " gone" : ""));
      return absl::OkStatus();
    });
    EXPECT_TRUE(exported.ok()) << exported;
    std::sort(blocks.begin(), blocks.end());
    return blocks;
  };
  using Names = std::vector<std::string>;
  EXPECT_EQ(difference("v1", ""), (Names{"2/0", "2/2", "2/4", "2/6", "2/8"}));
  EXPECT_EQ(difference("v2", "v1"), (Names{"2/0", "2/6"}));
  EXPECT_EQ(difference("v1", "v2"), (Names{"2/0", "2/6"}));
  EXPECT_EQ(difference("v0", "v1"), (Names{"2/0 gone", "2/2 gone", "2/4 gone", "2/6 gone", "2/8 gone"}));

  // What a server that joins builds from the differences is what the owner has.
  const SlotSourceState source = cluster.mover("m0").State();
  ASSERT_EQ(source.versions.size(), 3u);
  std::string base;
  for (const MergeSource& version : source.versions) {
    const auto merge = cluster.mover("m2").BeginMerge(version, slots, base);
    ASSERT_OK(merge);
    ASSERT_OK(cluster.mover("m0").ExportVersion(version.version, slots, base, [&](BlockId id, auto weights, auto state) {
      return (*merge)->Add(id, weights, state);
    }));
    ASSERT_OK((*merge)->Finish());
    EXPECT_EQ((*merge)->digest(), version.digest) << version.version;
    ASSERT_OK(cluster.mover("m2").Install(merge->get()));
    base = version.version;
  }
  EXPECT_EQ(cluster.shard("m2").ListVersions(), (std::vector<BankVersion>{{"v0"}, {"v1"}, {"v2"}}));
}

// An int8 version travels as it is, and as a difference from another int8 version only.
TEST(SlotMove, VersionsKeepTheirForm) {
  Cluster cluster("forms");
  ASSERT_OK(cluster.Begin(1));
  ASSERT_OK(cluster.Step(1, cluster.Blocks()));
  ASSERT_OK(cluster.Checkpoint("c1", 1));
  ASSERT_OK(cluster.Step(2, {{2, 0}}));
  ASSERT_OK(cluster.Checkpoint("c2", 2));
  Shard& owner = cluster.shard("m0");
  ASSERT_OK(owner.Publish("c1", "v1"));
  ASSERT_OK(owner.Publish("c1", "v1-int8", PayloadType::kI8Rows));
  ASSERT_OK(owner.Publish("c2", "v2-int8", PayloadType::kI8Rows));
  const SlotSet slots = cluster.map().SlotsOf("m0");
  const auto ignore = [](BlockId, auto, auto) { return absl::OkStatus(); };
  EXPECT_CODE(cluster.mover("m0").ExportVersion("v2-int8", slots, "v1", ignore), kFailedPrecondition, "payloads of different forms");

  const SlotSourceState source = cluster.mover("m0").State();
  ASSERT_EQ(source.versions.size(), 3u);
  std::map<PayloadType, std::string> bases;
  for (const MergeSource& version : source.versions) {
    if (version.version == "v2-int8") EXPECT_CODE(cluster.mover("m2").BeginMerge(version, slots, "v1"), kFailedPrecondition, "different forms");
    const auto merge = cluster.mover("m2").BeginMerge(version, slots, bases[version.payload]);
    ASSERT_OK(merge);
    int blocks = 0;
    ASSERT_OK(cluster.mover("m0").ExportVersion(version.version, slots, bases[version.payload], [&](BlockId id, auto weights, auto state) {
      ++blocks;
      return (*merge)->Add(id, weights, state);
    }));
    EXPECT_EQ(blocks, version.version == "v2-int8" ? 1 : 5) << version.version;
    ASSERT_OK((*merge)->Finish());
    EXPECT_EQ((*merge)->digest(), version.digest) << version.version;
    ASSERT_OK(cluster.mover("m2").Install(merge->get()));
    bases[version.payload] = version.version;
  }
  EXPECT_EQ(cluster.shard("m2").ListVersions(), owner.ListVersions());
  MergeSource other = source.versions[0];
  other.payload = PayloadType::kI8Rows;  // v1, published in another form elsewhere
  EXPECT_FALSE(cluster.mover("m2").Holds(other, slots));
  EXPECT_CODE(cluster.mover("m2").BeginMerge(other, slots), kFailedPrecondition, "payloads of another form");
}

// Random steps, checkpoints, moves that end anywhere, and crashes, against a table of counts. With a step log a crash takes nothing back.
void CompareWithAModel(Durability durability, std::vector<uint32_t> seeds) {
  for (const uint32_t seed : seeds) {
    SCOPED_TRACE(fmt::format("seed {}", seed));
    std::mt19937 random(seed);
    const auto below = [&](uint32_t n) { return static_cast<uint32_t>(random() % n); };
    Cluster cluster(fmt::format("random{}", seed), durability);
    std::map<BlockId, int> head, committed;
    for (BlockId id : cluster.Blocks()) head[id] = committed[id] = 0;
    uint64_t step = 0, committed_step = 0, moves = 0, switched = 0;
    std::string checkpoint;
    const auto go_on = [&] {  // after a crash
      if (durability == Durability::kStep) {
        ASSERT_OK(cluster.Begin(step + 1));
        return;
      }
      head = committed;
      step = committed_step;
      ASSERT_OK(cluster.Restore(checkpoint));
      ASSERT_OK(cluster.Begin(step + 1));
    };
    ASSERT_OK(cluster.Begin(1));
    for (int operation = 0; operation < 60; ++operation) {
      const uint32_t what = operation == 0 ? 1 : below(10);
      if (what < 5 && what != 1) {
        std::vector<BlockId> touched;
        for (BlockId id : cluster.Blocks())
          if (below(2) == 0) touched.push_back(id), ++head[id];
        ASSERT_OK(cluster.Step(++step, touched));
      } else if (what == 1) {
        checkpoint = fmt::format("c{}", operation);
        committed = head;
        committed_step = step;
        if (below(2) == 0) {  // a step goes on beside it
          ASSERT_OK(cluster.Snapshot(checkpoint, step));
          ++head[{2, 5}];
          ASSERT_OK(cluster.Step(++step, {{2, 5}}));
        }
        ASSERT_OK(cluster.Checkpoint(checkpoint, committed_step));
      } else if (what < 9) {
        const std::string from = cluster.OwnerOf({2, below(9)}), move_id = fmt::format("move{}", operation);
        std::string to = fmt::format("m{}", below(3));
        if (to == from) continue;
        ++moves;
        SlotSet slots = cluster.map().SlotsOf(from) & *ParseSlots("0-8");
        for (uint32_t slot = 0; slot < 9; ++slot)
          if (slots.count() > 1 && below(2) == 0) slots.reset(slot);
        const uint32_t stage = below(7);  // where it ends
        const std::string dies = below(3) == 0 ? (below(2) == 0 ? from : to) : "";
        ASSERT_OK(cluster.Copy(move_id, from, to, slots, false));
        if (below(2) == 0) {  // steps go on while it copies
          ++head[{2, 3}];
          ASSERT_OK(cluster.Step(++step, {{2, 3}}));
          ASSERT_OK(cluster.Copy(move_id, from, to, slots, false));
        }
        if (stage >= 1) ASSERT_OK(cluster.SealBoth(move_id, from, to));
        if (stage >= 2) ASSERT_OK(cluster.Copy(move_id, from, to, slots, true));
        if (stage >= 3) {
          cluster.Switch(to, slots, dies);
          ++switched;
        } else {
          if (!dies.empty()) cluster.Start(dies);
          for (const std::string& id : {from, to}) cluster.mover(id).Unseal(move_id, false);
        }
        if (cluster.map().ServerIndex(dies).ok()) go_on();
      } else {
        const std::string crashed = fmt::format("m{}", below(3));
        cluster.Start(crashed);
        if (cluster.map().ServerIndex(crashed).ok()) go_on();
      }
      for (const auto& [id, count] : head) ASSERT_EQ(cluster.Count(id), count) << ToString(id) << " after operation " << operation;
    }
    EXPECT_GT(switched, 3u);
    EXPECT_GT(moves, switched);
  }
}

TEST(SlotMove, RandomOperationsEqualAModel) { CompareWithAModel(Durability::kCheckpoint, {1, 2, 3, 4}); }
TEST(SlotMove, RandomOperationsWithAStepLogEqualAModel) { CompareWithAModel(Durability::kStep, {1, 2, 3}); }

}  // namespace
}  // namespace membank
