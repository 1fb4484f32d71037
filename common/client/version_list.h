// Which published versions can be read from all memory servers. Any thread.
#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "common/client/topology.h"

namespace membank {

// Sorted: what every server of the topology has published. A server that has replicas and does not answer within a second is spoken for by
// one of them; without any it is waited for until the deadline. Errors name the server.
absl::StatusOr<std::vector<std::string>> VersionsOnAll(const MemoryTopology& topology, absl::Time deadline);

}  // namespace membank
