#include "common/bank/bank_spec.h"
#include "common/bank/slot_map.h"
#include "tests/fuzz/fuzz_target.h"

namespace membank::fuzz {
namespace {

void RunBankSpec(std::string_view input) {
  const auto spec = BankSpec::FromJson(std::string(input));
  if (!spec.ok()) return;
  (void)spec->Hash();
  (void)spec->BankElements();
}

std::vector<std::string> BankSpecSeeds() {
  const std::string valid =
      R"({"anchor_fingerprint":"aa","bank_id":"b","dtype":"BF16","fan_out":4,"hidden":16,"layers":2,"seed":7,"tree_fingerprint":"bb","type":"ffn",)";
  return {valid + R"("widths":[8,0,4]})", valid + R"("widths":)" + NestedLists(100000) + "}"};
}

void RunSlotMap(std::string_view input) {
  const auto map = SlotMap::FromJson(std::string(input));
  if (map.ok()) (void)map->ToJson();
}

std::vector<std::string> SlotMapSeeds() {
  const std::string head = R"({"epoch":3,"servers":[{"id":"m0","address":"127.0.0.1:1"},{"id":"m1","address":"unix:/m1"}],"slots":[["m0",0,511],)";
  return {head + R"(["m1",512,1023]]})", head + NestedLists(100000) + "]}"};
}

void RunPath(std::string_view input) {
  Pieces pieces(input);
  const uint32_t fan_out = 2 + pieces.Byte() % 15, depth = 1 + pieces.Byte() % 7;
  const auto path = ParsePath(std::string(pieces.Rest()), fan_out, depth);
  if (path.ok()) (void)ToString(*path, fan_out);
}

std::vector<std::string> PathSeeds() { return {"\x02\x01" "3.3", "\x02\x01" "generic", "\x01\x05" "2.0.1.2.1.0"}; }

}  // namespace

std::vector<Target> BankTargets() {
  return {{"bank_spec", RunBankSpec, BankSpecSeeds}, {"slot_map", RunSlotMap, SlotMapSeeds}, {"path", RunPath, PathSeeds}};
}

}  // namespace membank::fuzz
