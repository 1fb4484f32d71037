// The slot map under a key of etcd: read linearizably, replaced by compare-and-swap on the key's revision, watched. Spoken to over gRPC, so that
// TLS, certificates that change and deadlines are those of all our channels. Members are asked one after the other, beginning with the last one
// that answered. Thread-safe. UNAVAILABLE names every member that was asked and why it did not answer.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "common/bank/slot_map_source.h"
#include "common/rpc/tls_files.h"

namespace membank {

struct EtcdSlotMapOptions {
  std::vector<std::string> members;  // addresses, host:port
  std::string key;                   // as etcdctl names it, "/membank/slots"
  std::string location;              // of both, for errors
  TlsFiles tls;                      // nothing named: no TLS
};

absl::StatusOr<std::unique_ptr<SlotMapSource>> OpenEtcdSlotMap(const EtcdSlotMapOptions& options);

}  // namespace membank
