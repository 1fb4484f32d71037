// Certificate, key and authorities as read from files and checked by us, whole: gRPC's own file watcher takes a key that does not fit its
// certificate, and all handshakes fail from then on (design/promises.md, known holes). Pure functions; any thread.
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "common/rpc/tls.h"

namespace membank {

struct TlsMaterial {
  std::string certificate, key, authority;            // PEM; what the files hold
  absl::Time expires = absl::InfiniteFuture();        // of the own certificate
};

// INVALID_ARGUMENT names file and reason: half of a pair, no PEM, a key of another certificate, a chain whose links do not sign one another, a
// certificate that is not valid yet or not any more, only expired authorities.
absl::StatusOr<TlsMaterial> LoadTlsMaterial(const TlsFiles& files, absl::Time now = absl::Now());

}  // namespace membank
