#include "common/client/version_list.h"

#include <algorithm>
#include <map>

#include "absl/time/clock.h"
#include "common/base/status_macros.h"
#include "common/client/peer_call.h"

namespace membank {
namespace {

constexpr absl::Duration kPatience = absl::Seconds(1);  // with whoever is not the last one to ask

// `last`: there is nobody else to ask; else a refused connection is answer enough.
absl::Status AskForManifest(const MemoryPeer& peer, bool last, absl::Time deadline, v1::Manifest* manifest) {
  return CallOnce(peer, last ? deadline : std::min(deadline, absl::Now() + kPatience), last, &v1::MemoryService::Stub::GetManifest,
                  v1::GetManifestRequest(), manifest);
}

absl::StatusOr<std::vector<std::string>> VersionsOf(const MemoryPeer& peer, absl::Time deadline) {
  v1::Manifest manifest;
  absl::Status status = AskForManifest(peer, peer.replicas.empty(), deadline, &manifest);
  std::string failures;
  for (size_t i = 0; !status.ok() && i < peer.replicas.size(); ++i) {
    failures += fmt::format("{}; ", std::string(status.message()));
    status = AskForManifest(PeerOf(peer.replicas[i]), i + 1 == peer.replicas.size(), deadline, &manifest);
  }
  if (!status.ok()) return absl::Status(status.code(), fmt::format("asked for its versions: {}{}", failures, std::string(status.message())));
  std::vector<std::string> names;
  for (const v1::BankVersion& version : manifest.versions()) names.push_back(version.name());
  return names;
}

}  // namespace

absl::StatusOr<std::vector<std::string>> VersionsOnAll(const MemoryTopology& topology, absl::Time deadline) {
  std::vector<std::vector<std::string>> versions(topology.peers.size());
  RETURN_IF_ERROR(InParallel(versions.size(), [&](size_t i) -> absl::Status {
    ASSIGN_OR_RETURN(versions[i], VersionsOf(topology.peers[i], deadline));
    return absl::OkStatus();
  }));
  std::map<std::string, size_t> holders;
  for (const std::vector<std::string>& of_one : versions)
    for (const std::string& version : of_one) ++holders[version];
  std::vector<std::string> on_all;
  for (const auto& [version, count] : holders)
    if (count == versions.size()) on_all.push_back(version);
  return on_all;
}

}  // namespace membank
