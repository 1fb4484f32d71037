#include "common/bank/slot_map.h"

#include <algorithm>
#include <limits>

#include "absl/strings/numbers.h"
#include "absl/strings/str_split.h"
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

absl::Status CheckKeys(const Json& object, const std::vector<std::string>& required, std::string_view what, const std::string& optional = "") {
  std::vector<std::string> known = required;
  if (!optional.empty()) known.push_back(optional);
  if (!object.is_object()) return InvalidArgument("slot map: {} is not a JSON object", what);
  for (const auto& [key, value] : object.items())
    if (std::find(known.begin(), known.end(), key) == known.end())
      return InvalidArgument("slot map: unknown key \"{}\" in {}, known keys: {}", key, what, fmt::join(known, ", "));
  for (const std::string& key : required)
    if (!object.contains(key)) return InvalidArgument("slot map: key \"{}\" is missing in {}", key, what);
  return absl::OkStatus();
}

absl::StatusOr<std::vector<SlotServer>> ParseServers(const Json& json) {
  if (!json.is_array()) return InvalidArgument("slot map: \"servers\" is not a list");
  std::vector<SlotServer> servers;
  for (const Json& server : json) {
    RETURN_IF_ERROR(CheckKeys(server, {"address", "id"}, "a server", "replicas"));
    if (!server["id"].is_string() || !server["address"].is_string())
      return InvalidArgument("slot map: server {} must have strings for id and address", server.dump());
    servers.push_back({server["id"].get<std::string>(), server["address"].get<std::string>()});
    for (const Json& replica : server.value("replicas", Json::array())) {
      if (!replica.is_string() || replica.get<std::string>().empty())
        return InvalidArgument("slot map: the replicas of server {} must be a list of addresses", server.dump());
      servers.back().replicas.push_back(replica.get<std::string>());
    }
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

std::string FormatSlots(const SlotSet& slots) {
  std::string text;
  for (uint32_t first = 0; first < kSlots; ++first) {
    if (!slots[first]) continue;
    uint32_t last = first;
    while (last + 1 < kSlots && slots[last + 1]) ++last;
    text += fmt::format("{}{}", text.empty() ? "" : ",", first);
    if (last > first) text += fmt::format("-{}", last);
    first = last;
  }
  return text.empty() ? "none" : text;
}

absl::StatusOr<SlotSet> ParseSlots(const std::string& text) {
  SlotSet slots;
  if (text == "none") return slots;
  for (const std::string& range : std::vector<std::string>(absl::StrSplit(text, ','))) {
    const std::vector<std::string> ends = absl::StrSplit(range, '-');
    uint32_t first = 0, last = 0;
    const bool numbers = ends.size() <= 2 && absl::SimpleAtoi(ends.front(), &first) && absl::SimpleAtoi(ends.back(), &last);
    if (!numbers || first > last || last >= kSlots)
      return InvalidArgument("slots \"{}\": \"{}\" is neither a slot nor an ascending range within 0-{}; expected a list as 0-511,600", text,
                             range, kSlots - 1);
    for (uint32_t slot = first; slot <= last; ++slot) slots.set(slot);
  }
  return slots;
}

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
  for (const SlotServer& server : servers_) {
    servers.push_back({{"address", server.address}, {"id", server.id}});
    if (!server.replicas.empty()) servers.back()["replicas"] = server.replicas;
  }
  for (uint32_t first = 0; first < kSlots;) {
    uint32_t last = first;
    while (last + 1 < kSlots && owner_[last + 1] == owner_[first]) ++last;
    slots.push_back({servers_[owner_[first]].id, first, last});
    first = last + 1;
  }
  return Json{{"epoch", epoch_}, {"servers", servers}, {"slots", slots}}.dump();
}

SlotSet SlotMap::SlotsOf(const std::string& id) const {
  SlotSet slots;
  for (uint32_t slot = 0; slot < kSlots; ++slot)
    if (servers_[owner_[slot]].id == id) slots.set(slot);
  return slots;
}

absl::StatusOr<SlotMap> SlotMap::WithReplicas(const std::string& id, std::vector<std::string> replicas) const {
  SlotMap next = *this;
  ++next.epoch_;
  ASSIGN_OR_RETURN(const size_t server, ServerIndex(id));
  next.servers_[server].replicas = std::move(replicas);
  return next;
}

absl::StatusOr<SlotMap> SlotMap::Move(const SlotSet& slots, const SlotServer& to, absl::Span<const std::string> leave) const {
  SlotMap next = *this;
  ++next.epoch_;
  if (!ServerIndex(to.id).ok()) next.servers_.push_back(to);
  RETURN_IF_ERROR(CheckServers(next.servers_));
  ASSIGN_OR_RETURN(const size_t target, next.ServerIndex(to.id));
  if (next.servers_[target].address != to.address)
    return InvalidArgument("slot map: server \"{}\" is at {} by epoch {}, not at {}", to.id, next.servers_[target].address, epoch_, to.address);
  for (uint32_t slot = 0; slot < kSlots; ++slot)
    if (slots[slot]) next.owner_[slot] = static_cast<uint16_t>(target);
  for (size_t i = next.servers_.size(); i-- > 0;) {
    const std::string& id = next.servers_[i].id;
    if (std::find(leave.begin(), leave.end(), id) == leave.end() || next.SlotsOf(id).any()) continue;
    next.servers_.erase(next.servers_.begin() + i);
    for (uint16_t& owner : next.owner_) owner -= owner > i ? 1 : 0;
  }
  return next;
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
