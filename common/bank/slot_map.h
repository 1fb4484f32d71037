// Slot map: block -> slot = cluster mod 1024, level by level; slot -> server. A file of JSON that `membank bank slots` writes and that
// servers and clients read:
//   {"epoch": 1, "servers": [{"id": "m0", "address": "127.0.0.1:7101"}, ...], "slots": [["m0", 0, 511], ["m1", 512, 1023]]}
// Ranges are inclusive; every slot has exactly one owner. Immutable; any thread.
#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "common/bank/block.h"

namespace membank {

inline constexpr uint32_t kSlots = 1024;

inline uint32_t SlotOf(BlockId id) { return id.cluster % kSlots; }

struct SlotServer {
  std::string id;
  std::string address;  // host:port or unix:/path
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
  absl::StatusOr<size_t> ServerIndex(const std::string& id) const;

 private:
  uint64_t epoch_ = 0;
  std::vector<SlotServer> servers_;
  std::vector<uint16_t> owner_;
};

}  // namespace membank
