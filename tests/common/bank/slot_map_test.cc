#include "common/bank/slot_map.h"

#include <gtest/gtest.h>

namespace membank {
namespace {

TEST(SlotMap, StripesEveryLevelEvenly) {
  auto map = SlotMap::Striped({{"m0", "h:1"}, {"m1", "h:2"}, {"m2", "h:3"}}, 4);
  ASSERT_TRUE(map.ok()) << map.status();
  EXPECT_EQ(map->epoch(), 4u);
  for (uint32_t level : {1u, 2u}) {
    std::vector<int> count(3);
    for (uint32_t cluster = 0; cluster < 12; ++cluster) ++count[map->OwnerOf({level, cluster})];
    EXPECT_EQ(count, (std::vector<int>{4, 4, 4}));
  }
  EXPECT_EQ(SlotOf({3, 1024 + 5}), 5u);
}

TEST(SlotMap, JsonComesBack) {
  const std::string ranges = R"({"epoch":3,"servers":[{"address":"a:1","id":"m0"},{"address":"unix:/x","id":"m1"}],)"
                             R"("slots":[["m0",0,511],["m1",512,1023]]})";
  auto map = SlotMap::FromJson(ranges);
  ASSERT_TRUE(map.ok()) << map.status();
  EXPECT_EQ(map->ToJson(), ranges);
  EXPECT_EQ(map->OwnerOf({1, 511}), 0u);
  EXPECT_EQ(map->OwnerOf({2, 512}), 1u);
  EXPECT_EQ(*map->ServerIndex("m1"), 1u);
  const absl::Status missing = map->ServerIndex("m2").status();
  EXPECT_EQ(missing.code(), absl::StatusCode::kNotFound);
  EXPECT_NE(std::string(missing.message()).find("m0, m1"), std::string::npos);

  auto striped = SlotMap::Striped({{"m0", "h:1"}, {"m1", "h:2"}});
  auto back = SlotMap::FromJson(striped->ToJson());
  ASSERT_TRUE(back.ok()) << back.status();
  for (uint32_t slot = 0; slot < kSlots; ++slot) EXPECT_EQ(back->OwnerOf({1, slot}), slot % 2);
}

TEST(SlotMap, BadMapsAreRefusedAndNamed) {
  const std::string servers = R"("servers":[{"id":"m0","address":"a:1"},{"id":"m1","address":"a:2"}])";
  const std::vector<std::pair<std::string, const char*>> cases = {
      {"", "not JSON"},
      {"[]", "not a JSON object"},
      {"{\"epoch\":1," + servers + "}", "\"slots\" is missing"},
      {"{\"epoch\":1,\"color\":2," + servers + ",\"slots\":[]}", "unknown key \"color\""},
      {"{\"epoch\":0," + servers + ",\"slots\":[[\"m0\",0,1023]]}", "epoch is 0"},
      {"{\"epoch\":-1," + servers + ",\"slots\":[[\"m0\",0,1023]]}", "epoch is -1"},
      {R"({"epoch":1,"servers":[],"slots":[]})", "0 servers, allowed 1..1024"},
      {R"({"epoch":1,"servers":[{"id":"m0"}],"slots":[]})", "\"address\" is missing"},
      {R"({"epoch":1,"servers":[{"id":"m0","address":""}],"slots":[]})", "\"m0\" has an empty address"},
      {R"({"epoch":1,"servers":[{"id":"m0","address":"a"},{"id":"m0","address":"b"}],"slots":[]})", "\"m0\" is used twice"},
      {"{\"epoch\":1," + servers + ",\"slots\":[[\"m0\",0,1022]]}", "slot 1023 has no owner"},
      {"{\"epoch\":1," + servers + ",\"slots\":[[\"m0\",0,1023],[\"m1\",5,5]]}", "slot 5 belongs to both \"m0\" and \"m1\""},
      {"{\"epoch\":1," + servers + ",\"slots\":[[\"m0\",0,1024]]}", "within 0..1023"},
      {"{\"epoch\":1," + servers + ",\"slots\":[[\"m0\",9,3]]}", "ascending"},
      {"{\"epoch\":1," + servers + ",\"slots\":[[\"m9\",0,1023]]}", "names a server that is not listed"},
      {"{\"epoch\":1," + servers + ",\"slots\":[[\"m0\",0]]}", "must look like"},
  };
  for (const auto& [json, names] : cases) {
    const absl::Status status = SlotMap::FromJson(json).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << json;
    EXPECT_NE(std::string(status.message()).find(names), std::string::npos) << status;
  }
  EXPECT_FALSE(SlotMap::Striped({}).ok());
  EXPECT_FALSE(SlotMap::Striped({{"m0", "h:1"}}, 0).ok());
  EXPECT_EQ(SlotMap::Load("/nowhere/slots.json").status().code(), absl::StatusCode::kNotFound);
}

TEST(SlotMap, SlotsAsText) {
  for (const char* text : {"none", "0", "7-9", "0-511,600,1020-1023"}) {
    const auto slots = ParseSlots(text);
    ASSERT_TRUE(slots.ok()) << slots.status();
    EXPECT_EQ(FormatSlots(*slots), text);
  }
  for (const char* text : {"", "a", "3-1", "0-1024", "1,,2", "1-2-3", "-1"}) {
    const auto slots = ParseSlots(text);
    EXPECT_EQ(slots.status().code(), absl::StatusCode::kInvalidArgument) << text;
  }
}

TEST(SlotMap, MoveAddsAndDropsServers) {
  const auto map = SlotMap::Striped({{"m0", "h:1"}, {"m1", "h:2"}}, 5);
  const SlotSet all_of_m0 = map->SlotsOf("m0");
  EXPECT_EQ(all_of_m0.count(), 512u);
  const auto moved = map->Move(all_of_m0, {"m2", "h:3"}, std::vector<std::string>{"m0"});
  ASSERT_TRUE(moved.ok()) << moved.status();
  EXPECT_EQ(moved->epoch(), 6u);
  ASSERT_EQ(moved->servers().size(), 2u);
  EXPECT_EQ(moved->SlotsOf("m2"), all_of_m0);
  EXPECT_EQ(moved->SlotsOf("m1"), map->SlotsOf("m1"));
  EXPECT_TRUE(moved->SlotsOf("m0").none());
  EXPECT_EQ(SlotMap::FromJson(moved->ToJson())->SlotsOf("m2"), all_of_m0);
  const auto kept = map->Move(*ParseSlots("0"), {"m2", "h:3"}, std::vector<std::string>{"m0"});
  EXPECT_EQ(kept->servers().size(), 3u);  // m0 still has slots
  EXPECT_EQ(map->Move(all_of_m0, {"m1", "elsewhere:1"}, {}).status().code(), absl::StatusCode::kInvalidArgument);
}

TEST(SlotMap, ReplicasComeBack) {
  const auto map = SlotMap::Striped({{"m0", "h:1"}, {"m1", "h:2"}});
  EXPECT_EQ(map->ToJson().find("replicas"), std::string::npos);
  const auto next = map->WithReplicas("m1", {"r:1", "r:2"});
  ASSERT_TRUE(next.ok()) << next.status();
  EXPECT_EQ(next->epoch(), 2u);
  EXPECT_EQ(SlotMap::FromJson(next->ToJson())->servers()[1].replicas, (std::vector<std::string>{"r:1", "r:2"}));
  EXPECT_FALSE(map->WithReplicas("m7", {}).ok());
  std::string bad = next->ToJson();
  bad.replace(bad.find("\"r:1\""), 5, "7");
  EXPECT_EQ(SlotMap::FromJson(bad).status().code(), absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace membank
