// Slot map: block -> slot = cluster mod 1024, level by level; slot -> server. JSON, in a file or in etcd, that `membank bank slots` writes and
// servers and clients read:
//   {"epoch": 1, "servers": [{"id": "m0", "address": "127.0.0.1:7101", "replicas": ["127.0.0.1:7201"]}, ...],
//    "slots": [["m0", 0, 511], ["m1", 512, 1023]]}           "replicas" may be missing
// Ranges are inclusive; every slot has exactly one owner. Immutable; any thread.
#pragma once

#include <bitset>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "common/bank/block.h"

namespace membank {

inline constexpr uint32_t kSlots = 1024;

inline uint32_t SlotOf(BlockId id) { return id.cluster % kSlots; }

using SlotSet = std::bitset<kSlots>;
std::string FormatSlots(const SlotSet& slots);                        // "0-511,600"; "none"
absl::StatusOr<SlotSet> ParseSlots(const std::string& text);          // the same form

struct SlotServer {
  std::string id;
  std::string address;  // host:port or unix:/path
  std::vector<std::string> replicas;  // addresses of servers that hold its published versions, too
};

class SlotMap {
 public:
  // Slot s goes to server s mod n, so that every level is striped evenly even when it has fewer than 1,024 clusters.
  static absl::StatusOr<SlotMap> Striped(std::vector<SlotServer> servers, uint64_t epoch = 1);
  static absl::StatusOr<SlotMap> FromJson(const std::string& json);
  static absl::StatusOr<SlotMap> Load(const std::string& path);
  std::string ToJson() const;

  uint64_t epoch() const { return epoch_; }
  const std::vector<SlotServer>& servers() const { return servers_; }
  size_t OwnerOf(BlockId id) const { return owner_[SlotOf(id)]; }  // index into servers()
  size_t OwnerOfSlot(uint32_t slot) const { return owner_[slot]; }
  SlotSet SlotsOf(const std::string& id) const;                     // empty for a server that is not listed
  absl::StatusOr<size_t> ServerIndex(const std::string& id) const;
  // The map of the next epoch, in which `slots` belong to `to`, which is listed if need be; `leave`: servers to take off the list once they
  // have no slot.
  absl::StatusOr<SlotMap> WithReplicas(const std::string& id, std::vector<std::string> replicas) const;  // of the next epoch, too
  absl::StatusOr<SlotMap> Move(const SlotSet& slots, const SlotServer& to, absl::Span<const std::string> leave) const;

 private:
  uint64_t epoch_ = 0;
  std::vector<SlotServer> servers_;
  std::vector<uint16_t> owner_;
};

}  // namespace membank
