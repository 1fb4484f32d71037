// Where the slot map lives: the one place that says who owns what. Servers and clients read it again when it may have changed; `membank bank
// slots` replaces it, and that replacement is the moment at which slots change their owner. Thread-safe.
#pragma once

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "common/bank/slot_map.h"

namespace membank {

class SlotMapSource {
 public:
  // A path: a file that servers and clients share.
  static absl::StatusOr<std::unique_ptr<SlotMapSource>> Open(const std::string& location);
  virtual ~SlotMapSource() = default;

  virtual absl::StatusOr<SlotMap> Load() = 0;
  // Durably replaces the map, provided that its epoch still is next.epoch() - 1; FAILED_PRECONDITION names both epochs otherwise and changes nothing.
  virtual absl::Status Replace(const SlotMap& next) = 0;
};

}  // namespace membank
