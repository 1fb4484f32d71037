// Opens the slot map wherever it lives: in a file that servers and clients share, or under a key of etcd.
#pragma once

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "common/bank/slot_map_source.h"
#include "common/rpc/tls_files.h"

namespace membank {

inline constexpr const char* kSlotMapLocations = "a file, or etcd://HOST:PORT[,HOST:PORT...]/KEY (etcds:// with TLS)";

bool IsEtcdLocation(const std::string& location);

// A path, or etcd://HOST:PORT[,HOST:PORT...]/KEY with the addresses of etcd's members; etcds:// shows the certificate of `tls` and checks the
// members' against its authority, as with all peers. Nothing is read yet.
absl::StatusOr<std::unique_ptr<SlotMapSource>> OpenSlotMap(const std::string& location, const TlsFiles& tls);

}  // namespace membank
