// Where backups lie: named objects in a directory or under an S3 prefix. An object is written whole and never changed. Any thread.
// Errors name the object's place; NOT_FOUND and ALREADY_EXISTS mean what they say, UNAVAILABLE that it may be tried again.
#pragma once

#include <memory>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"

namespace membank {

class ObjectStore {
 public:
  // "s3://bucket/prefix" (s3_store.h), or a directory, which is created when something is put.
  static absl::StatusOr<std::unique_ptr<ObjectStore>> Open(const std::string& place);
  virtual ~ObjectStore() = default;

  // Durable on return. `only_new`: ALREADY_EXISTS when the object is there, decided atomically by the store.
  virtual absl::Status Put(const std::string& name, std::string_view contents, bool only_new = false) = 0;
  virtual absl::StatusOr<std::string> Get(const std::string& name) = 0;
  virtual std::string PlaceOf(const std::string& name) const = 0;  // for messages
};

}  // namespace membank
