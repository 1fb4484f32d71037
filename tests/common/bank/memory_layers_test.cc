#include "common/bank/memory_layers.h"

#include <gtest/gtest.h>

namespace membank {
namespace {

using Layers = std::vector<uint32_t>;

TEST(MemoryLayers, WordsAndLists) {
  EXPECT_EQ(*ParseMemoryLayers("all", 4), Layers());
  EXPECT_EQ(*ParseMemoryLayers("early", 4), (Layers{0, 1}));
  EXPECT_EQ(*ParseMemoryLayers("late", 4), (Layers{2, 3}));
  EXPECT_EQ(*ParseMemoryLayers("early", 5), (Layers{0, 1, 2})) << "the halves share the middle one";
  EXPECT_EQ(*ParseMemoryLayers("late", 5), (Layers{2, 3, 4}));
  EXPECT_EQ(*ParseMemoryLayers("3,0", 4), (Layers{0, 3}));
  EXPECT_EQ(*ParseMemoryLayers("2,0,1", 3), Layers()) << "all of them";
  EXPECT_EQ(*ParseMemoryLayers("late", 1), Layers());
  EXPECT_EQ(MemoryLayersText({}), "all");
  EXPECT_EQ(MemoryLayersText({0, 3}), "0,3");
}

TEST(MemoryLayers, WhatIsWrongIsNamed) {
  const std::pair<const char*, const char*> cases[] = {{"", "\"\" is no layer"},     {"1,", "\"\" is no layer"},   {"middle", "\"middle\" is no layer"},
                                                       {"1-3", "\"1-3\" is no layer"}, {"4", "has no layer 4"},      {"1,2,1", "layer 1 is there twice"},
                                                       {"-1", "\"-1\" is no layer"},  {"99999999999", "is no layer"}};
  for (const auto& [text, names] : cases) {
    const absl::Status status = ParseMemoryLayers(text, 4).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << text;
    EXPECT_NE(std::string(status.message()).find(names), std::string::npos) << status;
    EXPECT_NE(std::string(status.message()).find("allowed: all, early, late, or layers 0..3 joined by commas"), std::string::npos) << status;
  }
}

}  // namespace
}  // namespace membank
