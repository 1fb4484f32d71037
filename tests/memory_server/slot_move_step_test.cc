// Slots that move under durability class "step": whoever dies at whatever moment, every step that all servers applied is there afterwards, and each
// block has counted exactly these, on its owner.
#include <random>

#include "tests/memory_server/slot_cluster.h"

namespace membank {
namespace {

class SlotMoveStepTest : public ::testing::Test {
 protected:
  void Open(const std::string& name) {
    cluster_ = std::make_unique<SlotCluster>(name, Durability::kStep);
    ASSERT_NO_FATAL_FAILURE(cluster_->StartAll());
    ASSERT_OK(cluster_->Begin(1));
  }
  // Everything but the switch, with a step between the rounds.
  void MoveUpToTheSwitch(const std::string& from, const std::string& to, const SlotSet& slots, uint64_t* step) {
    ASSERT_OK(cluster_->Copy("a", from, to, slots, false));
    ASSERT_OK(cluster_->Step(++*step, cluster_->Blocks()));
    ASSERT_OK(cluster_->SealBoth("a", from, to));
    ASSERT_OK(cluster_->Copy("a", from, to, slots, true));
  }
  void ExpectAll(int count) {
    for (BlockId id : cluster_->Blocks()) ASSERT_EQ(cluster_->Count(id), count) << ToString(id);
  }

  std::unique_ptr<SlotCluster> cluster_;
};

TEST_F(SlotMoveStepTest, AllDieAfterTheSwitchBeforeAnybodyHearsOfIt) {
  for (const char* to : {"m1", "m2"}) {
    SCOPED_TRACE(to);
    ASSERT_NO_FATAL_FAILURE(Open(std::string("unheard-") + to));
    uint64_t step = 0;
    ASSERT_OK(cluster_->Step(++step, cluster_->Blocks()));
    ASSERT_OK(cluster_->Checkpoint("c1", step));
    ASSERT_OK(cluster_->Step(++step, cluster_->Blocks()));
    const SlotSet slots = *ParseSlots("0,2,4");
    ASSERT_NO_FATAL_FAILURE(MoveUpToTheSwitch("m0", to, slots, &step));
    cluster_->Replace(to, slots);
    ASSERT_NO_FATAL_FAILURE(cluster_->StartAll());
    ASSERT_NO_FATAL_FAILURE(ExpectAll(3));
    ASSERT_OK(cluster_->GoOn());
    ASSERT_OK(cluster_->Step(++step, cluster_->Blocks()));
    ASSERT_NO_FATAL_FAILURE(cluster_->StartAll());
    ASSERT_NO_FATAL_FAILURE(ExpectAll(4));
    ASSERT_OK(cluster_->Restore("c1"));
    ASSERT_NO_FATAL_FAILURE(ExpectAll(1));
    ASSERT_NO_FATAL_FAILURE(cluster_->StartAll());
    ASSERT_NO_FATAL_FAILURE(ExpectAll(1));
  }
}

// It started again with the map of before the switch: what its log has taken is all it has.
TEST_F(SlotMoveStepTest, ANewOwnerThatDiedJustBeforeTheSwitchTakesTheSlotsFromItsLog) {
  for (const char* to : {"m1", "m2"}) {
    SCOPED_TRACE(to);
    ASSERT_NO_FATAL_FAILURE(Open(std::string("just-before-") + to));
    uint64_t step = 0;
    ASSERT_OK(cluster_->Step(++step, cluster_->Blocks()));
    const SlotSet slots = *ParseSlots("0,2,4");
    ASSERT_NO_FATAL_FAILURE(MoveUpToTheSwitch("m0", to, slots, &step));
    ASSERT_NO_FATAL_FAILURE(cluster_->Start(to));
    cluster_->Replace(to, slots);
    ASSERT_OK(cluster_->Adopt());
    ASSERT_NO_FATAL_FAILURE(ExpectAll(2));
    ASSERT_EQ(*cluster_->GoOn(), 2u);
    ASSERT_OK(cluster_->Step(++step, cluster_->Blocks()));
    ASSERT_NO_FATAL_FAILURE(cluster_->StartAll());
    ASSERT_NO_FATAL_FAILURE(ExpectAll(3));
  }
}

// Random steps, checkpoints, restores, moves that end anywhere, and deaths of any servers at any moment, against a table of counts.
TEST_F(SlotMoveStepTest, RandomOperationsEqualAModel) {
  int switched = 0, torn = 0, died = 0;
  for (uint32_t seed = 1; seed <= 5; ++seed) {
    SCOPED_TRACE(fmt::format("seed {}", seed));
    std::mt19937 random(seed);
    const auto below = [&](uint32_t n) { return static_cast<uint32_t>(random() % n); };
    ASSERT_NO_FATAL_FAILURE(Open(fmt::format("random{}", seed)));
    std::map<BlockId, int> head, committed;
    for (BlockId id : cluster_->Blocks()) head[id] = committed[id] = 0;
    uint64_t step = 0, committed_step = 0;
    std::string checkpoint;
    const auto some = [&] {
      std::vector<BlockId> blocks;
      for (BlockId id : cluster_->Blocks())
        if (below(2) == 0) blocks.push_back(id);
      return blocks;
    };
    const auto train = [&] {
      const std::vector<BlockId> blocks = some();
      ASSERT_OK(cluster_->Step(++step, blocks));
      for (BlockId id : blocks) ++head[id];
    };
    const auto die = [&](uint32_t who) {  // a set of servers
      ++died;
      for (uint32_t i = 0; i < 3; ++i)
        if (who & (1u << i)) ASSERT_NO_FATAL_FAILURE(cluster_->Start(fmt::format("m{}", i)));
    };
    for (int operation = 0; operation < 60; ++operation) {
      SCOPED_TRACE(fmt::format("operation {}", operation));
      const uint32_t what = below(12);
      bool go_on = false;
      if (what < 4) {
        ASSERT_NO_FATAL_FAILURE(train());
      } else if (what == 4) {
        checkpoint = fmt::format("c{}", operation);
        const uint64_t at = step;
        const std::map<BlockId, int> counts = head;
        ASSERT_OK(cluster_->Snapshot(checkpoint, at));
        if (below(2) == 0) ASSERT_NO_FATAL_FAILURE(train());
        ASSERT_OK(cluster_->Checkpoint(checkpoint, at));
        committed = counts;
        committed_step = at;
      } else if (what == 5 && !checkpoint.empty() && below(3) == 0) {
        ASSERT_OK(cluster_->Restore(checkpoint));
        head = committed;
        step = committed_step;
        ASSERT_OK(cluster_->Begin(step + 1));
      } else if (what == 6) {  // everything dies in the middle of a step: it is nowhere afterwards
        ASSERT_OK(cluster_->Step(step + 1, some(), below(2)));
        ASSERT_NO_FATAL_FAILURE(die(7));
        go_on = true;
        ++torn;
      } else if (what == 7) {
        ASSERT_NO_FATAL_FAILURE(die(1 + below(7)));
        go_on = true;
      } else {
        const std::string from = cluster_->OwnerOf({2, below(9)}), move_id = fmt::format("move{}", operation);
        const std::string to = fmt::format("m{}", below(3));
        if (to == from) continue;
        SlotSet slots = cluster_->map().SlotsOf(from) & *ParseSlots("0-8");
        for (uint32_t slot = 0; slot < 9; ++slot)
          if (slots.count() > 1 && below(2) == 0) slots.reset(slot);
        const uint32_t stage = below(6);  // where it ends
        ASSERT_OK(cluster_->Copy(move_id, from, to, slots, false));
        for (uint32_t rounds = below(3); rounds > 0; --rounds) {
          ASSERT_NO_FATAL_FAILURE(train());
          ASSERT_OK(cluster_->Copy(move_id, from, to, slots, false));
        }
        if (stage >= 1) ASSERT_OK(cluster_->SealBoth(move_id, from, to));
        if (stage >= 2) ASSERT_OK(cluster_->Copy(move_id, from, to, slots, true));
        if (stage >= 2 && below(4) == 0) {  // dies and is back before the map is replaced
          ASSERT_NO_FATAL_FAILURE(die(1 + below(7)));
          go_on = true;
        }
        if (stage >= 3) {
          cluster_->Replace(to, slots);
          ++switched;
          if (below(3) == 0) {
            ASSERT_NO_FATAL_FAILURE(die(1 + below(7)));
            go_on = true;
          }
          ASSERT_OK(cluster_->Adopt());
        } else {
          for (const std::string& id : {from, to}) cluster_->mover(id).Unseal(move_id, false);
        }
        if (below(4) == 0) {
          ASSERT_NO_FATAL_FAILURE(die(1 + below(7)));
          go_on = true;
        }
      }
      if (go_on) ASSERT_EQ(*cluster_->GoOn(), step);
      for (const auto& [id, count] : head) ASSERT_EQ(cluster_->Count(id), count) << ToString(id);
    }
  }
  fmt::print("{} moves switched, {} deaths, {} of them in the middle of a step\n", switched, died, torn);
  EXPECT_GT(switched, 20);
  EXPECT_GT(torn, 10);
}

}  // namespace
}  // namespace membank
