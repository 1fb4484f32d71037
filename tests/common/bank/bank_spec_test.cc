#include "common/bank/bank_spec.h"

#include <gtest/gtest.h>

#include <functional>

namespace membank {
namespace {

BankSpec Paper160M() {
  BankSpec spec;
  spec.bank_id = "paper-160m";
  spec.fan_out = 16;
  spec.widths = {256, 64, 16, 0};
  spec.layers = 35;
  spec.hidden = 512;
  spec.seed = 7;
  spec.anchor_fingerprint = "aa";
  spec.tree_fingerprint = "bb";
  return spec;
}

constexpr AnchorShape kAnchor160M = {35, 512, 12, 12, 32, 2048};

BankSpec PaperOf(MemoryType type, AnchorShape anchor = kAnchor160M) {
  BankSpec spec = Paper160M();
  spec.type = type;
  spec.SetAnchor(anchor);
  return spec;
}

TEST(BankSpec, EveryTypeHasTheSizeOfThePapersTable) {  // mission/paper.md section 3
  const uint64_t layers = 35, d = 512, q = 384, df = 2048;
  EXPECT_EQ(PaperOf(MemoryType::kFfn).UnitElements(), 3 * layers * d);
  EXPECT_EQ(PaperOf(MemoryType::kLoraQk).UnitElements(), 2 * layers * (d + q));
  EXPECT_EQ(PaperOf(MemoryType::kLoraVo).UnitElements(), 2 * layers * (d + q));
  EXPECT_EQ(PaperOf(MemoryType::kLoraFfn).UnitElements(), 3 * layers * (d + df));
  EXPECT_EQ(PaperOf(MemoryType::kKv).UnitElements(), 2 * layers * q);
  const uint64_t c0 = PaperOf(MemoryType::kLoraFfn).UnitElements();
  EXPECT_EQ(PaperOf(MemoryType::kLoraFfn).FetchedElements(), c0 * (256 + 64 + 16));
  EXPECT_EQ(PaperOf(MemoryType::kLoraFfn).BankElements(), c0 * (256 * 16 + 64 * 256 + 16 * 4096));
  EXPECT_EQ(PaperOf(MemoryType::kKv).BlockBytes(3), 2 * 35 * 384 * 16 * 2u);
}

TEST(BankSpec, LoraOfSharedKeysIsAsNarrowAsTheirProjections) {
  const AnchorShape gemma270m = {18, 640, 4, 1, 256, 2048};
  EXPECT_EQ(PaperOf(MemoryType::kLoraQk, gemma270m).UnitElements(), 18u * (640 + 1024 + 640 + 256));
  EXPECT_EQ(PaperOf(MemoryType::kLoraVo, gemma270m).UnitElements(), 18u * (640 + 256 + 1024 + 640));
  EXPECT_EQ(PaperOf(MemoryType::kKv, gemma270m).UnitElements(), 2u * 18 * 1024) << "one key and one value per query head";
}

TEST(BankSpec, ChosenLayersAloneHaveBlocks) {
  BankSpec spec = PaperOf(MemoryType::kFfn);
  spec.memory_layers = {0, 17, 34};
  EXPECT_EQ(spec.block_layers(), 3u);
  EXPECT_EQ(spec.AnchorLayer(1), 17u);
  EXPECT_EQ(spec.UnitElements(), 3u * 3 * 512);
  EXPECT_EQ(PaperOf(MemoryType::kFfn).block_layers(), 35u);
  EXPECT_EQ(PaperOf(MemoryType::kFfn).AnchorLayer(17), 17u);
}

TEST(BankSpec, AnAnchorOfAnotherShapeIsNamed) {
  for (const MemoryType type : {MemoryType::kFfn, MemoryType::kLoraQk, MemoryType::kLoraVo, MemoryType::kLoraFfn, MemoryType::kKv}) {
    const BankSpec spec = PaperOf(type);
    EXPECT_TRUE(spec.CheckFits(kAnchor160M).ok());
    AnchorShape other = kAnchor160M;
    other.ffn_inner = 1024;
    EXPECT_EQ(spec.CheckFits(other).ok(), type != MemoryType::kLoraFfn);
    other = kAnchor160M;
    other.kv_heads = 4;
    EXPECT_EQ(spec.CheckFits(other).ok(), type != MemoryType::kLoraQk && type != MemoryType::kLoraVo);
    other = kAnchor160M;
    other.layers = 34;
    EXPECT_EQ(spec.CheckFits(other).message(),
              "bank paper-160m was made for another anchor: layers 35, the anchor's is 34. Use the bank's own anchor or create another bank");
  }
}

TEST(BankSpec, SizesEqualThePapersTable) {  // mission/paper.md section 4
  EXPECT_EQ(Paper160M().FetchedElements(), 18'063'360u);
  EXPECT_EQ(Paper160M().BankElements(), 4'624'220'160u);
  BankSpec larger = Paper160M();
  larger.layers = 24;
  larger.hidden = 2048;
  larger.widths = {768, 256, 16, 0};
  EXPECT_EQ(larger.FetchedElements(), 153'354'240u);
  EXPECT_EQ(larger.BankElements(), 21'139'292'160u);
  EXPECT_EQ(Paper160M().BlockBytes(3), 1'720'320u);
}

TEST(BankSpec, ContainsItsClustersAndOneGenericBlockPerUsedLevel) {
  const BankSpec spec = Paper160M();
  EXPECT_TRUE(spec.Contains({1, 0}));
  EXPECT_TRUE(spec.Contains({1, 15}));
  EXPECT_TRUE(spec.Contains(GenericBlock(16, 1)));
  EXPECT_EQ(GenericBlock(16, 2), (BlockId{2, 256}));
  EXPECT_FALSE(spec.Contains({1, 17}));
  EXPECT_FALSE(spec.Contains({0, 0}));
  EXPECT_FALSE(spec.Contains({4, 0})) << "width 0";
  EXPECT_FALSE(spec.Contains({5, 0}));
}

TEST(BankSpec, BlocksOfAPathLeaveUnusedLevelsOut) {
  const BankSpec spec = Paper160M();
  const BlockPath path{MemoryMode::kFetched, 4, 0x3a5c};
  EXPECT_EQ(spec.BlocksOf(path), (std::vector<BlockId>{{1, 3}, {2, 0x3a}, {3, 0x3a5}}));
  EXPECT_EQ(spec.BlocksOf({MemoryMode::kGeneric, 4, 0}), (std::vector<BlockId>{{1, 16}, {2, 256}, {3, 4096}}));
  EXPECT_TRUE(spec.BlocksOf({MemoryMode::kNone, 4, 5}).empty());
}

TEST(BankSpec, JsonIsCanonicalAndComesBack) {
  const BankSpec spec = Paper160M();
  EXPECT_EQ(spec.ToJson(),
            R"({"anchor_fingerprint":"aa","bank_id":"paper-160m","dtype":"BF16","fan_out":16,"hidden":512,"layers":35,"seed":7,)"
            R"("tree_fingerprint":"bb","type":"ffn","widths":[256,64,16,0]})");
  auto back = BankSpec::FromJson(spec.ToJson());
  ASSERT_TRUE(back.ok()) << back.status();
  EXPECT_EQ(back->ToJson(), spec.ToJson());
  EXPECT_EQ(back->Hash(), spec.Hash());
}

TEST(BankSpec, JsonHasWhatTheTypeDependsOn) {
  BankSpec spec = PaperOf(MemoryType::kLoraQk);
  spec.memory_layers = {1, 2};
  EXPECT_EQ(spec.ToJson(),
            R"({"anchor_fingerprint":"aa","bank_id":"paper-160m","dtype":"BF16","fan_out":16,"head_dim":32,"heads":12,"hidden":512,"kv_heads":12,)"
            R"("layers":35,"memory_layers":[1,2],"seed":7,"tree_fingerprint":"bb","type":"lora_qk","widths":[256,64,16,0]})");
  for (const MemoryType type : {MemoryType::kFfn, MemoryType::kLoraQk, MemoryType::kLoraVo, MemoryType::kLoraFfn, MemoryType::kKv}) {
    spec.type = type;
    spec.SetAnchor(kAnchor160M);
    auto back = BankSpec::FromJson(spec.ToJson());
    ASSERT_TRUE(back.ok()) << back.status();
    EXPECT_EQ(back->ToJson(), spec.ToJson());
    EXPECT_EQ(back->UnitElements(), spec.UnitElements());
  }
}

// The hash is what clients and servers of different builds compare: it must never change for the same spec.
TEST(BankSpec, HashIsPinned) {
  EXPECT_EQ(Paper160M().Hash(), "cde8e24b26052e0ed3a8076728603810");
}

TEST(BankSpec, EveryFieldChangesTheHash) {
  const std::vector<std::function<void(BankSpec&)>> changes = {
      [](BankSpec& s) { s.bank_id += "x"; },   [](BankSpec& s) { s.fan_out = 8; },  [](BankSpec& s) { s.widths[0] = 128; },
      [](BankSpec& s) { s.widths.pop_back(); }, [](BankSpec& s) { s.layers = 34; },  [](BankSpec& s) { s.hidden = 256; },
      [](BankSpec& s) { s.dtype = DType::kF32; }, [](BankSpec& s) { s.seed = 8; },   [](BankSpec& s) { s.anchor_fingerprint = "ac"; },
      [](BankSpec& s) { s.tree_fingerprint = "bc"; }, [](BankSpec& s) { s.type = MemoryType::kLoraQk; }, [](BankSpec& s) { s.heads = 12; },
      [](BankSpec& s) { s.kv_heads = 12; }, [](BankSpec& s) { s.head_dim = 12; }, [](BankSpec& s) { s.ffn_inner = 12; },
      [](BankSpec& s) { s.memory_layers = {12}; }};
  std::vector<std::string> hashes = {Paper160M().Hash()};
  for (const auto& change : changes) {
    BankSpec spec = Paper160M();
    change(spec);
    for (const std::string& other : hashes) EXPECT_NE(spec.Hash(), other);
    hashes.push_back(spec.Hash());
  }
}

TEST(BankSpec, BadSpecsAreRefusedAndNamed) {
  struct Case {
    std::function<void(BankSpec&)> change;
    const char* names;
  };
  const std::vector<Case> cases = {
      {[](BankSpec& s) { s.bank_id = ""; }, "bank_id"},
      {[](BankSpec& s) { s.bank_id = "two words"; }, "bank_id"},
      {[](BankSpec& s) { s.fan_out = 1; }, "fan_out is 1, allowed 2..4096"},
      {[](BankSpec& s) { s.fan_out = 5000; }, "fan_out is 5000"},
      {[](BankSpec& s) { s.widths.clear(); }, "levels) is 0, allowed 1..8"},
      {[](BankSpec& s) { s.widths.assign(9, 1); }, "levels) is 9"},
      {[](BankSpec& s) { s.widths.assign(8, 1); }, "2^31"},
      {[](BankSpec& s) { s.widths.assign(3, 0); }, "all 3 widths are 0"},
      {[](BankSpec& s) { s.widths[1] = 65537; }, "width of level 2 is 65537"},
      {[](BankSpec& s) { s.widths[0] = 65536; s.hidden = 65536; }, "a block of level 1"},
      {[](BankSpec& s) { s.layers = 0; }, "layers is 0"},
      {[](BankSpec& s) { s.hidden = 70000; }, "hidden is 70000"},
      {[](BankSpec& s) { s.dtype = DType::kF16; }, "dtype is F16, allowed BF16, F32"},
      {[](BankSpec& s) { s.type = MemoryType::kKv; }, "heads is 0, allowed 1..4096"},
      {[](BankSpec& s) { s.type = MemoryType::kLoraFfn; }, "ffn_inner is 0, allowed 1..1048576"},
      {[](BankSpec& s) { s.ffn_inner = 2048; }, "ffn_inner is 2048; ffn memory does not depend on it"},
      {[](BankSpec& s) { s.type = MemoryType::kLoraVo; s.SetAnchor({35, 512, 12, 5, 32, 0}); }, "12 heads are no multiple of 5 key-value heads"},
      {[](BankSpec& s) { s.memory_layers = {3, 35}; }, "names layer 35, allowed 0..34"},
      {[](BankSpec& s) { s.memory_layers = {3, 3}; }, "memory_layers has 3 after 3"},
      {[](BankSpec& s) { s.layers = 2; s.memory_layers = {0, 1}; }, "memory_layers names all 2 layers"},
      {[](BankSpec& s) { s.anchor_fingerprint = ""; }, "anchor_fingerprint"},
      {[](BankSpec& s) { s.tree_fingerprint = ""; }, "tree_fingerprint"},
  };
  EXPECT_TRUE(Paper160M().Validate().ok());
  for (const Case& c : cases) {
    BankSpec spec = Paper160M();
    c.change(spec);
    const absl::Status status = spec.Validate();
    EXPECT_FALSE(status.ok()) << c.names;
    EXPECT_NE(std::string(status.message()).find(c.names), std::string::npos) << status;
    EXPECT_FALSE(BankSpec::FromJson(spec.ToJson()).ok()) << c.names;
  }
}

TEST(BankSpec, BadJsonIsRefusedAndNamed) {
  const std::string good = Paper160M().ToJson();
  const auto replace = [&](const std::string& from, const std::string& to) {
    std::string text = good;
    text.replace(text.find(from), from.size(), to);
    return text;
  };
  const std::vector<std::pair<std::string, const char*>> cases = {
      {"", "not a JSON object"},
      {"[1]", "the bank spec is not a JSON object but a JSON array"},
      {good.substr(0, 40), "not a JSON object"},
      {replace("\"seed\":7", "\"sead\":7"), "\"seed\" is missing"},
      {replace("\"seed\":7", "\"seed\":7,\"sead\":7"), "unknown key \"sead\""},
      {replace("\"seed\":7", "\"seed\":-7"), "\"seed\" holds -7"},
      {replace("\"fan_out\":16", "\"fan_out\":16.5"), "\"fan_out\" holds 16.5"},
      {replace("\"fan_out\":16", "\"fan_out\":99999999999"), "\"fan_out\" holds 99999999999"},
      {replace("[256,64,16,0]", "256"), "must be a list"},
      {replace("\"ffn\"", "\"fnn\""), "memory type \"fnn\" is unknown, known: ffn"},
      {replace("\"BF16\"", "3"), "must be a string"},
  };
  for (const auto& [json, names] : cases) {
    const absl::Status status = BankSpec::FromJson(json).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << json;
    EXPECT_NE(std::string(status.message()).find(names), std::string::npos) << status;
  }
}

TEST(BlockPath, TextAndBack) {
  const BlockPath path{MemoryMode::kFetched, 2, 29};
  EXPECT_EQ(ToString(path, 8), "3.5");
  EXPECT_EQ(*ParsePath("3.5", 8, 2), path);
  EXPECT_EQ(ParsePath("generic", 8, 2)->mode, MemoryMode::kGeneric);
  EXPECT_EQ(ParsePath("none", 8, 2)->mode, MemoryMode::kNone);
  for (uint32_t leaf = 0; leaf < 4096; leaf += 37) {
    const BlockPath random{MemoryMode::kFetched, 3, leaf};
    EXPECT_EQ(*ParsePath(ToString(random, 16), 16, 3), random);
  }
  for (const char* bad : {"", "3", "3.", "3.8", "8.1", "3.5.1", "3,5", "3.5 ", "-1.2", "a.b", "3.99999999999", "Generic"}) {
    const absl::Status status = ParsePath(bad, 8, 2).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << bad;
    EXPECT_NE(std::string(status.message()).find("2 numbers 0..7"), std::string::npos) << status;
  }
}

}  // namespace
}  // namespace membank
