#include "common/bank/slot_map.h"

#include <algorithm>
#include <limits>

#include "common/base/file.h"
#include "common/base/json.h"
#include "common/base/status_macros.h"
#include "nlohmann/json.hpp"

namespace membank {
namespace {

using Json = nlohmann::json;
constexpr uint16_t kNobody = std::numeric_limits<uint16_t>::max();

absl::Status CheckServers(const std::vector<SlotServer>& servers) {
  if (servers.empty() || servers.size() > kSlots) return InvalidArgument("slot map: {} servers, allowed 1..{}", servers.size(), kSlots);
  for (size_t i = 0; i < servers.size(); ++i) {
    if (servers[i].id.empty()) return InvalidArgument("slot map: server number {} has an empty id", i);
    if (servers[i].address.empty()) return InvalidArgument("slot map: server \"{}\" has an empty address", servers[i].id);
    for (size_t j = 0; j < i; ++j)
      if (servers[i].id == servers[j].id) return InvalidArgument("slot map: server id \"{}\" is used twice", servers[i].id);
  }
  return absl::OkStatus();
}

absl::Status CheckKeys(const Json& object, const std::vector<std::string>& known, std::string_view what) {
  if (!object.is_object()) return InvalidArgument("slot map: {} is not a JSON object", what);
  for (const auto& [key, value] : object.items())
    if (std::find(known.begin(), known.end(), key) == known.end())
      return InvalidArgument("slot map: unknown key \"{}\" in {}, known keys: {}", key, what, fmt::join(known, ", "));
  for (const std::string& key : known)
    if (!object.contains(key)) return InvalidArgument("slot map: key \"{}\" is missing in {}", key, what);
  return absl::OkStatus();
}

absl::StatusOr<std::vector<SlotServer>> ParseServers(const Json& json) {
  if (!json.is_array()) return InvalidArgument("slot map: \"servers\" is not a list");
  std::vector<SlotServer> servers;
  for (const Json& server : json) {
    RETURN_IF_ERROR(CheckKeys(server, {"address", "id"}, "a server"));
    if (!server["id"].is_string() || !server["address"].is_string())
      return InvalidArgument("slot map: server {} must have strings for id and address", server.dump());
    servers.push_back({server["id"].get<std::string>(), server["address"].get<std::string>()});
  }
  RETURN_IF_ERROR(CheckServers(servers));
  return servers;
}

// ["m0", 0, 511]
absl::Status ParseRange(const Json& range, const std::vector<SlotServer>& servers, std::vector<uint16_t>* owner) {
  const bool well_formed = range.is_array() && range.size() == 3 && range[0].is_string() && range[1].is_number_unsigned() &&
                           range[2].is_number_unsigned();
  if (!well_formed) return InvalidArgument("slot map: slot range {} must look like [\"m0\", 0, 511]", range.dump());
  const uint64_t first = range[1].get<uint64_t>(), last = range[2].get<uint64_t>();
  if (first > last || last >= kSlots) return InvalidArgument("slot map: slot range {} must be ascending within 0..{}", range.dump(), kSlots - 1);
  const auto server = std::find_if(servers.begin(), servers.end(), [&](const SlotServer& s) { return s.id == range[0].get<std::string>(); });
  if (server == servers.end()) return InvalidArgument("slot map: slot range {} names a server that is not listed", range.dump());
  for (uint64_t slot = first; slot <= last; ++slot) {
    if ((*owner)[slot] != kNobody)
      return InvalidArgument("slot map: slot {} belongs to both \"{}\" and \"{}\"", slot, servers[(*owner)[slot]].id, server->id);
    (*owner)[slot] = static_cast<uint16_t>(server - servers.begin());
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<SlotMap> SlotMap::Striped(std::vector<SlotServer> servers, uint64_t epoch) {
  RETURN_IF_ERROR(CheckServers(servers));
  if (epoch == 0) return InvalidArgument("slot map: epoch is 0, must be at least 1");
  SlotMap map;
  map.epoch_ = epoch;
  map.servers_ = std::move(servers);
  for (uint32_t slot = 0; slot < kSlots; ++slot) map.owner_.push_back(static_cast<uint16_t>(slot % map.servers_.size()));
  return map;
}

absl::StatusOr<SlotMap> SlotMap::FromJson(const std::string& text) {
  const absl::StatusOr<Json> parsed = ParseJson(text);
  if (!parsed.ok()) return InvalidArgument("slot map: \"{}\" is not JSON: {}", text.substr(0, 80), std::string(parsed.status().message()));
  const Json& json = *parsed;
  RETURN_IF_ERROR(CheckKeys(json, {"epoch", "servers", "slots"}, "the file"));
  SlotMap map;
  if (!json["epoch"].is_number_unsigned() || json["epoch"].get<uint64_t>() == 0)
    return InvalidArgument("slot map: epoch is {}, must be a whole number of at least 1", json["epoch"].dump());
  map.epoch_ = json["epoch"].get<uint64_t>();
  ASSIGN_OR_RETURN(map.servers_, ParseServers(json["servers"]));
  if (!json["slots"].is_array()) return InvalidArgument("slot map: \"slots\" is not a list");
  map.owner_.assign(kSlots, kNobody);
  for (const Json& range : json["slots"]) RETURN_IF_ERROR(ParseRange(range, map.servers_, &map.owner_));
  const auto missing = std::find(map.owner_.begin(), map.owner_.end(), kNobody);
  if (missing != map.owner_.end()) return InvalidArgument("slot map: slot {} has no owner", missing - map.owner_.begin());
  return map;
}

absl::StatusOr<SlotMap> SlotMap::Load(const std::string& path) {
  ASSIGN_OR_RETURN(const std::string text, ReadFile(path));
  absl::StatusOr<SlotMap> map = FromJson(text);
  if (!map.ok()) return Annotate(map.status(), path);
  return map;
}

std::string SlotMap::ToJson() const {
  Json servers = Json::array(), slots = Json::array();
  for (const SlotServer& server : servers_) servers.push_back({{"address", server.address}, {"id", server.id}});
  for (uint32_t first = 0; first < kSlots;) {
    uint32_t last = first;
    while (last + 1 < kSlots && owner_[last + 1] == owner_[first]) ++last;
    slots.push_back({servers_[owner_[first]].id, first, last});
    first = last + 1;
  }
  return Json{{"epoch", epoch_}, {"servers", servers}, {"slots", slots}}.dump();
}

absl::StatusOr<size_t> SlotMap::ServerIndex(const std::string& id) const {
  std::vector<std::string> ids;
  for (size_t i = 0; i < servers_.size(); ++i) {
    if (servers_[i].id == id) return i;
    ids.push_back(servers_[i].id);
  }
  return NotFound("server \"{}\" is not in the slot map of epoch {}, which has: {}", id, epoch_, fmt::join(ids, ", "));
}

}  // namespace membank
