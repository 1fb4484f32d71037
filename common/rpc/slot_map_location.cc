#include "common/rpc/slot_map_location.h"

#include "absl/strings/match.h"
#include "absl/strings/str_split.h"
#include "common/base/status_macros.h"
#include "common/rpc/etcd_slot_map_source.h"

namespace membank {
namespace {

constexpr const char* kPlain = "etcd://";
constexpr const char* kSecure = "etcds://";

}  // namespace

bool IsEtcdLocation(const std::string& location) { return absl::StartsWith(location, kPlain) || absl::StartsWith(location, kSecure); }

absl::StatusOr<std::unique_ptr<SlotMapSource>> OpenSlotMap(const std::string& location, const TlsFiles& tls) {
  if (!IsEtcdLocation(location)) return OpenSlotMapFile(location);
  const bool secure = absl::StartsWith(location, kSecure);
  const std::string rest = location.substr(std::string(secure ? kSecure : kPlain).size());
  const size_t slash = rest.find('/');
  const std::string members = rest.substr(0, slash), key = slash == std::string::npos ? "" : rest.substr(slash);
  EtcdSlotMapOptions options;
  options.members = absl::StrSplit(members, ',');
  options.key = key;
  options.location = location;
  bool named = key.size() > 1;
  for (const std::string& member : options.members) named = named && member.find(':') != std::string::npos;
  if (!named) return InvalidArgument("slot map \"{}\" is no {}HOST:PORT[,HOST:PORT...]/KEY", location, secure ? kSecure : kPlain);
  if (secure && tls.authority.empty()) {
    return InvalidArgument("slot map \"{}\" is reached with TLS: --tls-authority must name the authorities of etcd's certificates", location);
  }
  if (secure) options.tls = tls;
  return OpenEtcdSlotMap(options);
}

}  // namespace membank
