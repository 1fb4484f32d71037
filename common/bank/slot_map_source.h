// Where the slot map lives: the one place that says who owns what. Servers and clients read it again when it may have changed; `membank bank
// slots` replaces it, and that replacement is the moment at which slots change their owner. A file here; etcd in common/rpc. Thread-safe.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "common/bank/slot_map.h"

namespace membank {

class SlotMapSource {
 public:
  virtual ~SlotMapSource() = default;

  virtual absl::StatusOr<SlotMap> Load() = 0;
  // Writes the first map; ALREADY_EXISTS when there is one.
  virtual absl::Status Create(const SlotMap& map) = 0;
  // Durably replaces the map, provided that its epoch still is next.epoch() - 1; FAILED_PRECONDITION names both epochs otherwise and changes nothing.
  // After UNAVAILABLE it may have been replaced.
  virtual absl::Status Replace(const SlotMap& next) = 0;

  // Returns when the map may have changed since the last Load, and now and then for nothing; at once after Stop. One thread at a time.
  virtual void AwaitChange() = 0;
  virtual void Stop() = 0;  // once
};

// A file that servers and clients share.
absl::StatusOr<std::unique_ptr<SlotMapSource>> OpenSlotMapFile(const std::string& path);

// Replaces the map by change(map), where `change` depends on nothing else: again from the newer map when somebody else was quicker. The new map.
absl::StatusOr<SlotMap> ChangeSlotMap(SlotMapSource* source, const std::function<absl::StatusOr<SlotMap>(const SlotMap&)>& change);

// What Replace answers when the map at `location` is not of the epoch before.
absl::Status SlotMapConflict(const std::string& location, uint64_t epoch, uint64_t next);

}  // namespace membank
