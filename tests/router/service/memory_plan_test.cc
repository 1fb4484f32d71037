#include "router/memory_plan.h"

#include "gmock/gmock.h"

namespace membank {
namespace {

using ::testing::HasSubstr;

v1::BankSpec Spec(const std::string& name, uint32_t fan_out, int depth, const std::string& tree) {
  v1::BankSpec spec;
  spec.set_bank_id(name);
  spec.set_fan_out(fan_out);
  for (int i = 0; i < depth; ++i) spec.add_widths(8);
  spec.set_tree_fingerprint(tree);
  return spec;
}

const std::vector<TreeFacts> kTrees = {{4, 2, 2, "tree a", "embedder"}, {2, 3, 2, "tree b", "embedder"}};

std::vector<PlannedBank> Two(const std::vector<TreeFacts>& trees = kTrees) {
  return PlanBanks({Spec("public", 4, 2, "tree a"), Spec("private", 2, 3, "tree b")}, trees);
}

v1::MemoryOptions Options(const std::vector<std::string>& banks = {}, const std::vector<std::pair<std::string, std::string>>& paths = {}) {
  v1::MemoryOptions memory;
  for (const std::string& bank : banks) memory.add_banks(bank);
  for (const auto& [bank, path] : paths) (*memory.mutable_paths())[bank] = path;
  return memory;
}

// "text", "none", "generic" or the path, per bank.
std::vector<std::string> Planned(const v1::MemoryOptions& memory, const std::vector<PlannedBank>& banks) {
  const absl::StatusOr<std::vector<BankPlan>> plans = PlanMemory(memory, banks);
  if (!plans.ok()) return {std::string(plans.status().message())};
  std::vector<std::string> texts;
  for (size_t i = 0; i < plans->size(); ++i) texts.push_back((*plans)[i].by_text ? "text" : ToString((*plans)[i].path, banks[i].fan_out));
  return texts;
}

using Texts = std::vector<std::string>;

TEST(MemoryPlanTest, EachBankHasTheTreeOfItsFingerprint) {
  const std::vector<PlannedBank> banks = PlanBanks({Spec("x", 2, 3, "tree b"), Spec("y", 4, 2, "tree a"), Spec("z", 2, 3, "tree b")}, kTrees);
  EXPECT_EQ(banks[0].tree, 1u);
  EXPECT_EQ(banks[1].tree, 0u);
  EXPECT_EQ(banks[2].tree, 1u) << "a tree may choose the paths of several banks";
  EXPECT_EQ(PlanBanks({}, kTrees)[0].tree, 0u);
  EXPECT_EQ(PlanBanks({}, {})[0].tree, std::nullopt);
}

TEST(MemoryPlanTest, WhichBanksAreUsed) {
  EXPECT_EQ(Planned(Options(), Two()), (Texts{"text", "text"}));
  EXPECT_EQ(Planned(Options({"private"}), Two()), (Texts{"none", "text"}));
  EXPECT_EQ(Planned(Options({"public", "public"}), Two()), (Texts{"text", "none"}));
  EXPECT_EQ(Planned(Options({}, {{"private", "1.0.1"}}), Two()), (Texts{"none", "1.0.1"}));
  EXPECT_EQ(Planned(Options({"private", "public"}, {{"private", "1.0.1"}}), Two()), (Texts{"text", "1.0.1"}));
  v1::MemoryOptions memory = Options();
  memory.set_path("3.1");
  EXPECT_EQ(Planned(memory, Two()), (Texts{"3.1", "none"})) << "what clients of one bank have always asked for";
  memory = Options({}, {{"private", "0.0.0"}});
  memory.set_path("3.1");
  EXPECT_EQ(Planned(memory, Two()), (Texts{"3.1", "0.0.0"}));
  memory = Options({"public", "private"});
  memory.set_path("3.1");
  EXPECT_EQ(Planned(memory, Two()), (Texts{"3.1", "text"}));
  memory = Options();
  memory.set_mode(v1::MEMORY_MODE_GENERIC);
  EXPECT_EQ(Planned(memory, Two()), (Texts{"generic", "generic"}));
  memory.add_banks("private");
  EXPECT_EQ(Planned(memory, Two()), (Texts{"none", "generic"}));
  memory.set_mode(v1::MEMORY_MODE_NONE);
  EXPECT_EQ(Planned(memory, Two()), (Texts{"none", "none"}));
}

TEST(MemoryPlanTest, WithoutTrees) {
  EXPECT_EQ(Planned(Options(), Two({})), (Texts{"none", "none"}));
  EXPECT_EQ(Planned(Options({}, {{"private", "1.1.1"}}), Two({})), (Texts{"none", "1.1.1"}));
  EXPECT_THAT(Planned(Options({"private"}), Two({}))[0], HasSubstr("started without --tree"));
  EXPECT_EQ(Planned(Options(), Two({kTrees[0]})), (Texts{"text", "none"}));
  EXPECT_THAT(Planned(Options({"private"}), Two({kTrees[0]}))[0], HasSubstr("no tree of it; give memory.paths.private"));
}

TEST(MemoryPlanTest, ErrorsNameTheFieldAndWhatIsAllowed) {
  EXPECT_EQ(Planned(Options({"secret"}), Two()), (Texts{"memory.banks names 'secret'; the banks served here are: public, private"}));
  EXPECT_EQ(Planned(Options({}, {{"secret", "1"}}), Two()), (Texts{"memory.paths.secret: the banks served here are: public, private"}));
  EXPECT_THAT(Planned(Options({}, {{"private", "1.2.0"}}), Two())[0], HasSubstr("memory.paths.private"));
  EXPECT_THAT(Planned(Options({}, {{"private", "generic"}}), Two())[0], HasSubstr("child numbers from the root"));
  EXPECT_THAT(Planned(Options({"public"}, {{"private", "1.1.0"}}), Two())[0], HasSubstr("which memory.banks leaves out"));
  v1::MemoryOptions memory = Options({}, {{"public", "1.1"}});
  memory.set_path("3.1");
  EXPECT_THAT(Planned(memory, Two())[0], HasSubstr("both paths of the first bank"));
  memory = Options({}, {{"public", "1.1"}});
  memory.set_mode(v1::MEMORY_MODE_GENERIC);
  EXPECT_THAT(Planned(memory, Two())[0], HasSubstr("go with mode fetched only"));
  memory = Options();
  memory.set_bank("private");
  EXPECT_EQ(PlanMemory(memory, Two()).status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(Planned(Options({""}), PlanBanks({}, kTrees))[0], HasSubstr("memory.banks names ''"));
  memory = Options();
  memory.set_path("1.1");
  EXPECT_THAT(Planned(memory, PlanBanks({}, {}))[0], HasSubstr("no worker has a bank"));
}

}  // namespace
}  // namespace membank
