#include "common/bank/slot_plan.h"

#include <algorithm>
#include <map>

#include "common/base/status_macros.h"

namespace membank {
namespace {

// One byte more for each slot, so that slots without bytes are spread, too.
uint64_t Weight(absl::Span<const uint64_t> bytes, uint32_t slot) { return bytes[slot] + 1; }

}  // namespace

std::vector<uint64_t> SlotBytesOf(const BankSpec& spec) {
  std::vector<uint64_t> bytes(kSlots);
  for (uint32_t level = 1; level <= spec.depth(); ++level) {
    if (spec.width(level) == 0) continue;
    for (uint32_t cluster = 0; cluster <= ClusterCount(spec.fan_out, level); ++cluster)
      bytes[SlotOf({level, cluster})] += spec.BlockBytes(level);
  }
  return bytes;
}

absl::StatusOr<std::vector<SlotTransfer>> PlanTransfers(const SlotMap& map, absl::Span<const uint64_t> bytes,
                                                        const std::vector<SlotServer>& targets) {
  if (targets.empty()) return InvalidArgument("no server is to have the slots; name at least one");
  if (bytes.size() != kSlots) return InvalidArgument("bytes of {} slots are given, there are {}", bytes.size(), kSlots);
  // Where every slot is, as an index into targets; targets.size() and above: on a server that is to leave.
  const auto target_of = [&](const std::string& id) {
    return static_cast<size_t>(std::find_if(targets.begin(), targets.end(), [&](const SlotServer& t) { return t.id == id; }) - targets.begin());
  };
  std::vector<uint64_t> load(targets.size());
  std::vector<size_t> place(kSlots);
  uint64_t total = 0;
  for (uint32_t slot = 0; slot < kSlots; ++slot) {
    place[slot] = target_of(map.servers()[map.OwnerOfSlot(slot)].id);
    total += Weight(bytes, slot);
    if (place[slot] < targets.size()) load[place[slot]] += Weight(bytes, slot);
  }
  std::vector<uint32_t> largest_first(kSlots);
  for (uint32_t slot = 0; slot < kSlots; ++slot) largest_first[slot] = slot;
  std::stable_sort(largest_first.begin(), largest_first.end(), [&](uint32_t a, uint32_t b) { return Weight(bytes, a) > Weight(bytes, b); });
  const auto least_loaded = [&] { return static_cast<size_t>(std::min_element(load.begin(), load.end()) - load.begin()); };
  for (uint32_t slot : largest_first) {  // what has to leave
    if (place[slot] < targets.size()) continue;
    place[slot] = least_loaded();
    load[place[slot]] += Weight(bytes, slot);
  }
  const uint64_t share = total / targets.size();
  for (uint32_t slot : largest_first) {  // what is above its server's share goes where it fits below the share
    const size_t to = least_loaded();
    const uint64_t weight = Weight(bytes, slot);
    const bool above = load[place[slot]] > share && load[place[slot]] - share >= weight;
    if (place[slot] == to || !above || load[to] + weight > share + weight / 2) continue;
    load[place[slot]] -= weight;
    load[to] += weight;
    place[slot] = to;
  }
  std::map<std::pair<size_t, size_t>, SlotTransfer> transfers;  // by old and new owner
  for (uint32_t slot = 0; slot < kSlots; ++slot) {
    const size_t owner = map.OwnerOfSlot(slot);
    if (map.servers()[owner].id == targets[place[slot]].id) continue;
    SlotTransfer& transfer = transfers[{owner, place[slot]}];
    transfer.from = map.servers()[owner].id;
    transfer.to = targets[place[slot]];
    transfer.slots.set(slot);
    transfer.bytes += bytes[slot];
  }
  std::vector<SlotTransfer> plan;
  for (auto& [key, transfer] : transfers) plan.push_back(std::move(transfer));
  return plan;
}

std::vector<SlotTransfer> SplitTransfer(const SlotTransfer& transfer, absl::Span<const uint64_t> bytes, uint64_t most) {
  std::vector<SlotTransfer> parts;
  for (uint32_t slot = 0; slot < kSlots; ++slot) {
    if (!transfer.slots[slot]) continue;
    if (parts.empty() || parts.back().bytes + bytes[slot] > most) parts.push_back({transfer.from, transfer.to, {}, 0});
    parts.back().slots.set(slot);
    parts.back().bytes += bytes[slot];
  }
  return parts;
}

}  // namespace membank
