#include "cli/doctor_plan.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace membank {
namespace {

using ::testing::HasSubstr;

// The example of design/numbers.md: 160M anchor, k 16, (256, 64, 16), bf16.
BankSpec Spec() {
  BankSpec spec;
  spec.bank_id = "b";
  spec.fan_out = 16;
  spec.widths = {256, 64, 16};
  spec.layers = 35;
  spec.hidden = 512;
  return spec;
}

MachineRates Rates() {
  MachineRates rates;
  rates.disk_write = rates.disk_read = 1e9;
  rates.disk_sync_seconds = 1e-3;
  rates.loopback = 2e9;
  rates.crc32c = 1e10;
  rates.memory_stream = 1e10;
  rates.fetch = rates.push = 1e9;
  rates.prepare = rates.apply = 1e9;
  rates.checkpoint = 1e9;
  rates.memory_bytes = 64ull << 30;
  rates.disk_free_bytes = 1ull << 40;
  return rates;
}

TEST(DoctorPlanTest, CountsDistinctBlocksAsTheDesignDoes) {
  EXPECT_NEAR(ExpectedDistinctBlocks(16, 1024), 16, 0.01);
  EXPECT_NEAR(ExpectedDistinctBlocks(256, 1024), 251.3, 0.1);
  EXPECT_NEAR(ExpectedDistinctBlocks(4096, 1024), 906.0, 1);
  EXPECT_NEAR(ExpectedDistinctBlocks(1u << 30, 1), 1, 1e-6);
}

TEST(DoctorPlanTest, AStepIsBytesOverRates) {
  const DoctorReport report = Examine(Spec(), Rates(), {1024, 1, 100});
  ASSERT_EQ(report.step.size(), 5u);
  EXPECT_EQ(report.step[0].name, "fetch");
  EXPECT_NEAR(report.step[0].seconds, 3.73, 0.01);  // 3.7 GB each way
  EXPECT_THAT(report.step[0].how, HasSubstr("16 + 251 + 906 blocks = 3.73 GB / 1.00 GB/s"));
  EXPECT_NEAR(report.step[3].seconds, 1.86, 0.01);
  const DoctorReport four = Examine(Spec(), Rates(), {1024, 4, 100});
  EXPECT_NEAR(four.step[0].seconds * 4, report.step[0].seconds, 1e-9);
}

TEST(DoctorPlanTest, NamesWhatLimits) {
  MachineRates rates = Rates();
  const auto finding = [&](size_t i) { return Examine(Spec(), rates, {1024, 1, 100}).findings[i]; };
  rates.fetch = 2e8;
  EXPECT_THAT(finding(0), HasSubstr("Training: fetch limits it"));
  EXPECT_THAT(finding(0), HasSubstr("0.10 of raw TCP on loopback (2.00 GB/s)"));
  rates = Rates();
  rates.apply = 1e8;
  EXPECT_THAT(finding(0), HasSubstr("Training: optimizer limits it"));
  EXPECT_THAT(finding(0), HasSubstr("0.28 of this memory's 10.00 GB/s"));
  rates = Rates();
  rates.checkpoint = 1e6;
  EXPECT_THAT(finding(0), HasSubstr("Training: checkpoint, per step limits it"));
}

TEST(DoctorPlanTest, TellsWhetherTheBankFits) {
  MachineRates rates = Rates();
  EXPECT_THAT(Examine(Spec(), rates, {1024, 1, 100}).findings[2], HasSubstr("does not fit"));  // 9.3 GB of bf16 are 65 GB with state
  EXPECT_THAT(Examine(Spec(), rates, {1024, 2, 100}).findings[2], HasSubstr("the whole bank in training fits"));
  rates.disk_free_bytes = 1 << 30;
  EXPECT_THAT(Examine(Spec(), rates, {1024, 2, 100}).findings[3], HasSubstr("not enough"));
}

TEST(DoctorPlanTest, ServingCountsALeafMissAndLeavesOutUnusedLevels) {
  BankSpec spec = Spec();
  spec.widths = {256, 0, 16};
  const DoctorReport report = Examine(spec, Rates(), {});
  ASSERT_EQ(report.miss.size(), 2u);
  EXPECT_NEAR(report.miss[1].seconds, 1.72e-3, 1e-5);
  EXPECT_THAT(report.findings[1], HasSubstr("581 new leaf blocks a second"));
}

}  // namespace
}  // namespace membank
