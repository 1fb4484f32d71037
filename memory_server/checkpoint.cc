#include "memory_server/checkpoint.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>

#include "absl/cleanup/cleanup.h"
#include "common/base/crc32c.h"
#include "common/base/fail_point.h"
#include "common/base/file.h"
#include "common/base/log.h"
#include "common/base/status_macros.h"
#include "memory_server/block_record.h"
#include "memory_server/checked_json.h"
#include "nlohmann/json.hpp"

namespace membank {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::json;

constexpr char kManifest[] = "/manifest.json", kCommitted[] = "/committed.json";
constexpr char kWeights[] = "/weights", kState[] = "/state";
constexpr char kPayload[] = "payload", kI8RowsPayload[] = "I8_ROWS";
constexpr std::string_view kBuilding = ".new-", kTrash = ".trash-", kScratch = ".import-";

absl::Status CheckName(std::string_view what, const std::string& name) {
  const bool allowed = std::all_of(name.begin(), name.end(), [](unsigned char c) { return std::isalnum(c) || c == '.' || c == '_' || c == '-'; });
  if (allowed && !name.empty() && name.size() <= 128 && name[0] != '.') return absl::OkStatus();
  return InvalidArgument("{} \"{}\" is no valid name; allowed: 1-128 characters of A-Z a-z 0-9 . _ -, not starting with a dot", what, name);
}

absl::Status SyncFile(const std::string& path) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) return absl::ErrnoToStatus(errno, "open " + path);
  const int result = ::fsync(fd), error = errno;
  ::close(fd);
  return result == 0 ? absl::OkStatus() : absl::ErrnoToStatus(error, "fsync " + path);
}

}  // namespace

std::string EncodeMarks(const CutMarks& marks) {
  return Json{{"step", marks.step}, {"run_id", marks.run_id}, {"run_epoch", marks.run_epoch}}.dump();
}

nlohmann::json MarksToJson(const CutMarks& marks, const CutDigest& digest, const HeldSlots& held, const std::string& spec_hash) {
  return {{"format", 1},           {"spec_hash", spec_hash},       {"step", marks.step},     {"run_id", marks.run_id},
          {"run_epoch", marks.run_epoch}, {"blocks", digest.blocks}, {"blocks_crc32c", digest.crc32c},
          {"slots", FormatSlots(held.slots)}, {"slot_map_epoch", held.epoch}};
}

void AddVersionFacts(const std::string& checkpoint_id, PayloadType payload, nlohmann::json* manifest) {
  (*manifest)["checkpoint"] = checkpoint_id;
  if (payload == PayloadType::kI8Rows) (*manifest)[kPayload] = kI8RowsPayload;
}

namespace {

absl::StatusOr<uint64_t> NumberAt(const Json& json, const char* key, const std::string& path) {
  const auto it = json.find(key);
  if (it == json.end() || !it->is_number_unsigned()) return DataLoss("manifest {} is damaged: \"{}\" is not a number", path, key);
  return it->get<uint64_t>();
}

absl::StatusOr<std::string> StringAt(const Json& json, const char* key, const std::string& path) {
  const auto it = json.find(key);
  if (it == json.end() || !it->is_string()) return DataLoss("manifest {} is damaged: \"{}\" is not a string", path, key);
  return it->get<std::string>();
}

absl::Status ReadMarks(const Json& json, const std::string& path, const std::string& spec_hash, CutMarks* marks, CutDigest* digest,
                       HeldSlots* held) {
  ASSIGN_OR_RETURN(const std::string hash, StringAt(json, "spec_hash", path));
  if (hash != spec_hash) return FailedPrecondition("{} belongs to a bank with spec hash {}, this bank's is {}", path, hash, spec_hash);
  ASSIGN_OR_RETURN(marks->step, NumberAt(json, "step", path));
  ASSIGN_OR_RETURN(marks->run_id, StringAt(json, "run_id", path));
  ASSIGN_OR_RETURN(marks->run_epoch, NumberAt(json, "run_epoch", path));
  ASSIGN_OR_RETURN(digest->blocks, NumberAt(json, "blocks", path));
  ASSIGN_OR_RETURN(digest->crc32c, NumberAt(json, "blocks_crc32c", path));
  ASSIGN_OR_RETURN(held->epoch, NumberAt(json, "slot_map_epoch", path));
  ASSIGN_OR_RETURN(const std::string slots, StringAt(json, "slots", path));
  const absl::StatusOr<SlotSet> parsed = ParseSlots(slots);
  if (!parsed.ok()) return DataLoss("manifest {} is damaged: {}", path, std::string(parsed.status().message()));
  held->slots = *parsed;
  return absl::OkStatus();
}

absl::StatusOr<Cut> ReadCut(const std::string& id, const std::string& directory, const std::string& spec_hash) {
  Cut cut{id, directory};
  const std::string manifest = directory + kManifest, committed = directory + kCommitted;
  ASSIGN_OR_RETURN(const Json json, ReadCheckedJson(manifest));
  RETURN_IF_ERROR(ReadMarks(json, manifest, spec_hash, &cut.marks, &cut.digest, &cut.held));
  ASSIGN_OR_RETURN(cut.prepared, NumberAt(json, "sequence", manifest));
  if (fs::exists(committed)) {
    ASSIGN_OR_RETURN(const Json mark, ReadCheckedJson(committed));
    ASSIGN_OR_RETURN(cut.committed, NumberAt(mark, "sequence", committed));
  }
  return cut;
}

// Everything is written below a name with a dot; the rename makes it count.
absl::Status MakeVisible(const std::string& building, const std::string& directory) {
  RETURN_IF_ERROR(SyncDirectory(building));
  if (::rename(building.c_str(), directory.c_str()) != 0) return absl::ErrnoToStatus(errno, fmt::format("rename {} to {}", building, directory));
  return SyncDirectory(fs::path(directory).parent_path());
}

std::vector<std::string> SubdirectoryNames(const std::string& directory) {
  std::vector<std::string> names;
  for (const fs::directory_entry& entry : fs::directory_iterator(directory))
    if (entry.is_directory()) names.push_back(entry.path().filename());
  std::sort(names.begin(), names.end());
  return names;
}

}  // namespace

void CutDigest::Add(BlockId id, uint64_t version, uint32_t payload_crc32c) {
  const uint32_t words[] = {id.level, id.cluster, static_cast<uint32_t>(version), static_cast<uint32_t>(version >> 32), payload_crc32c};
  crc32c = ExtendCrc32c(crc32c, words, sizeof(words));
  ++blocks;
}

absl::Status CloneStore(const std::string& from, const std::string& to) {
  RETURN_IF_ERROR(MakeDirectories(to));
  std::error_code error;
  for (const fs::directory_entry& entry : fs::directory_iterator(from, error)) {
    const std::string name = entry.path().filename(), target = to + "/" + name;
    if (name.starts_with("LOG") || name == "LOCK") continue;
    std::error_code failed;
    const bool table = name.ends_with(".sst");
    if (table) fs::create_hard_link(entry.path(), target, failed);
    else fs::copy_file(entry.path(), target, failed);
    if (failed) return absl::ErrnoToStatus(failed.value(), fmt::format("clone {} to {}", entry.path().string(), target));
    if (!table) RETURN_IF_ERROR(SyncFile(target));
  }
  if (error) return absl::ErrnoToStatus(error.value(), "list " + from);
  return SyncDirectory(to);
}

CheckpointStore::CheckpointStore(const std::string& data_directory, const std::string& spec_hash, OpenBlockStore open_store,
                                 uint32_t keep_checkpoints)
    : checkpoints_(data_directory + "/checkpoints"), versions_directory_(data_directory + "/versions"), head_(data_directory + "/head"),
      spec_hash_(spec_hash), open_store_(std::move(open_store)), keep_checkpoints_(std::max(1u, keep_checkpoints)) {}

absl::StatusOr<std::unique_ptr<CheckpointStore>> CheckpointStore::Open(const std::string& data_directory, const std::string& spec_hash,
                                                                       OpenBlockStore open_store, uint32_t keep_checkpoints) {
  std::unique_ptr<CheckpointStore> store(new CheckpointStore(data_directory, spec_hash, std::move(open_store), keep_checkpoints));
  std::error_code error;
  fs::remove_all(store->head_, error);
  if (error) return absl::ErrnoToStatus(error.value(), "remove " + store->head_);
  RETURN_IF_ERROR(MakeDirectories(store->checkpoints_));
  RETURN_IF_ERROR(MakeDirectories(store->versions_directory_));
  RETURN_IF_ERROR(store->LoadCuts());
  RETURN_IF_ERROR(store->LoadVersions());
  return store;
}

absl::Status CheckpointStore::LoadCuts() {
  for (const std::string& name : SubdirectoryNames(checkpoints_)) {
    const std::string directory = checkpoints_ + "/" + name;
    const bool unfinished = name[0] == '.' || (!fs::exists(directory + kManifest) && !fs::exists(directory + kCommitted));
    if (unfinished) {
      LOG_WARN("removing {}, left by interrupted work", directory);
      RETURN_IF_ERROR(Remove(directory));
      continue;
    }
    if (!fs::exists(directory + kManifest)) return DataLoss("checkpoint {} is committed but its manifest is missing", directory);
    ASSIGN_OR_RETURN(Cut cut, ReadCut(name, directory, spec_hash_));
    absl::MutexLock lock(&mu_);
    cuts_.emplace(name, std::move(cut));
  }
  return absl::OkStatus();
}

absl::Status CheckpointStore::LoadVersions() {
  for (const std::string& name : SubdirectoryNames(versions_directory_)) {
    const std::string directory = versions_directory_ + "/" + name;
    if (name[0] == '.') {
      RETURN_IF_ERROR(Remove(directory));
      continue;
    }
    Version version;
    version.name = name;
    version.damage = LoadVersion(directory, &version);
    if (!version.damage.ok()) LOG_ERROR("version {} cannot be served: {}", name, std::string(version.damage.message()));
    absl::MutexLock lock(&mu_);
    versions_.emplace(name, std::move(version));
  }
  return absl::OkStatus();
}

absl::Status CheckpointStore::LoadVersion(const std::string& directory, Version* version) const {
  const std::string manifest = directory + kManifest;
  ASSIGN_OR_RETURN(const Json json, ReadCheckedJson(manifest));
  RETURN_IF_ERROR(ReadMarks(json, manifest, spec_hash_, &version->marks, &version->digest, &version->held));
  ASSIGN_OR_RETURN(version->checkpoint_id, StringAt(json, "checkpoint", manifest));
  if (json.contains(kPayload)) {
    ASSIGN_OR_RETURN(const std::string payload, StringAt(json, kPayload, manifest));
    if (payload != kI8RowsPayload)
      return FailedPrecondition("{} holds payloads of the form \"{}\", this build reads the bank's dtype and {}", manifest, payload, kI8RowsPayload);
    version->payload = PayloadType::kI8Rows;
  }
  ASSIGN_OR_RETURN(version->weights, open_store_(directory + kWeights, StoreAccess::kReadOnly));
  return absl::OkStatus();
}

absl::StatusOr<std::shared_ptr<HeadStores>> CheckpointStore::OpenHead(const std::optional<Cut>& cut) const {
  const std::string directory = fmt::format("{}/{}", head_, next_head_++);
  const std::shared_ptr<HeadStores> stores(new HeadStores, [directory](HeadStores* closed) {
    delete closed;
    std::error_code ignored;
    fs::remove_all(directory, ignored);
  });
  MEMBANK_FAIL_POINT("start.head");
  RETURN_IF_ERROR(MakeDirectories(directory));
  if (cut.has_value()) {
    RETURN_IF_ERROR(CloneStore(cut->directory + kWeights, directory + kWeights));
    RETURN_IF_ERROR(CloneStore(cut->directory + kState, directory + kState));
  }
  MEMBANK_FAIL_POINT("start.head_cloned");
  ASSIGN_OR_RETURN(stores->weights, open_store_(directory + kWeights, StoreAccess::kReadWrite));
  ASSIGN_OR_RETURN(stores->state, open_store_(directory + kState, StoreAccess::kReadWrite));
  return stores;
}

absl::StatusOr<HeadStores> CheckpointStore::OpenCut(const Cut& cut) const {
  HeadStores stores;
  ASSIGN_OR_RETURN(stores.weights, open_store_(cut.directory + kWeights, StoreAccess::kReadOnly));
  ASSIGN_OR_RETURN(stores.state, open_store_(cut.directory + kState, StoreAccess::kReadOnly));
  return stores;
}

absl::StatusOr<HeadStores> CheckpointStore::OpenScratch(const std::string& id) {
  RETURN_IF_ERROR(CheckName("checkpoint id", id));
  RETURN_IF_ERROR(RemoveScratch(id));
  const std::string directory = fmt::format("{}/{}{}", checkpoints_, kScratch, id);
  HeadStores stores;
  ASSIGN_OR_RETURN(stores.weights, open_store_(directory + kWeights, StoreAccess::kReadWrite));
  ASSIGN_OR_RETURN(stores.state, open_store_(directory + kState, StoreAccess::kReadWrite));
  return stores;
}

absl::Status CheckpointStore::RemoveScratch(const std::string& id) {
  const std::string directory = fmt::format("{}/{}{}", checkpoints_, kScratch, id);
  return fs::exists(directory) ? Remove(directory) : absl::OkStatus();
}

absl::Status CheckpointStore::Prepare(const std::string& id, const CutMarks& marks, const CutDigest& digest, const HeldSlots& held,
                                      const HeadStores& head) {
  RETURN_IF_ERROR(CheckName("checkpoint id", id));
  const std::string directory = checkpoints_ + "/" + id, building = fmt::format("{}/{}{}", checkpoints_, kBuilding, id);
  if (fs::exists(directory)) return AlreadyExists("checkpoint {} exists", directory);
  if (fs::exists(building)) RETURN_IF_ERROR(Remove(building));
  RETURN_IF_ERROR(MakeDirectories(building));
  MEMBANK_FAIL_POINT("checkpoint.prepare.begun");
  RETURN_IF_ERROR(head.weights->Flush());
  RETURN_IF_ERROR(head.state->Flush());
  RETURN_IF_ERROR(head.weights->Cut(building + kWeights));
  MEMBANK_FAIL_POINT("checkpoint.prepare.weights_cut");
  RETURN_IF_ERROR(head.state->Cut(building + kState));
  MEMBANK_FAIL_POINT("checkpoint.prepare.state_cut");
  const uint64_t sequence = NextSequence();
  Json manifest = MarksToJson(marks, digest, held, spec_hash_);
  manifest["id"] = id;
  manifest["sequence"] = sequence;
  RETURN_IF_ERROR(WriteCheckedJson(building + kManifest, manifest));
  MEMBANK_FAIL_POINT("checkpoint.prepare.manifest");
  RETURN_IF_ERROR(MakeVisible(building, directory));
  MEMBANK_FAIL_POINT("checkpoint.prepare.visible");
  absl::MutexLock lock(&mu_);
  cuts_[id] = {id, directory, marks, digest, sequence, 0, held};
  return absl::OkStatus();
}

absl::Status CheckpointStore::Commit(const std::string& id, uint32_t keep) {
  ASSIGN_OR_RETURN(Cut cut, Find(id));
  cut.committed = NextSequence();
  MEMBANK_FAIL_POINT("checkpoint.commit.begun");
  RETURN_IF_ERROR(WriteCheckedJson(cut.directory + kCommitted, Json{{"sequence", cut.committed}}));
  MEMBANK_FAIL_POINT("checkpoint.commit.marked");
  {
    absl::MutexLock lock(&mu_);
    cuts_[id] = cut;
  }
  CollectGarbage(cut, keep > 0 ? keep : keep_checkpoints_);
  MEMBANK_FAIL_POINT("checkpoint.commit.collected");
  return absl::OkStatus();
}

absl::Status CheckpointStore::Delete(const std::string& id) {
  ASSIGN_OR_RETURN(const Cut cut, Find(id));
  {
    absl::MutexLock lock(&mu_);
    cuts_.erase(id);
  }
  return Remove(cut.directory);
}

absl::StatusOr<CutDigest> CheckpointStore::ConvertWeights(const Cut& cut, const std::string& building, const Convert& convert) const {
  ASSIGN_OR_RETURN(const std::unique_ptr<BlockStore> from, open_store_(cut.directory + kWeights, StoreAccess::kReadOnly));
  ASSIGN_OR_RETURN(const std::unique_ptr<BlockStore> to, open_store_(building + kWeights, StoreAccess::kReadWrite));
  const absl::StatusOr<CutDigest> digest = convert(cut, from.get(), to.get());
  if (!digest.ok()) return Annotate(digest.status(), fmt::format("checkpoint {} in {}", cut.id, cut.directory));
  RETURN_IF_ERROR(to->Flush());
  return *digest;
}

absl::Status CheckpointStore::Publish(const std::string& id, const std::string& name, PayloadType payload, const Convert& convert) {
  RETURN_IF_ERROR(CheckName("version", name));
  ASSIGN_OR_RETURN(const Cut cut, Find(id));
  if (cut.committed == 0) return FailedPrecondition("checkpoint {} is not committed; commit it before publishing it", id);
  const absl::StatusOr<Version> existing = FindVersion(name);
  if (!existing.ok() && !absl::IsNotFound(existing.status())) return existing.status();
  if (existing.ok()) {
    const bool same_blocks = payload == PayloadType::kBank ? existing->digest == cut.digest : existing->digest.blocks == cut.digest.blocks;
    if (existing->checkpoint_id == id && existing->marks == cut.marks && existing->payload == payload && same_blocks) return absl::OkStatus();
    return AlreadyExists("version {} was published from checkpoint {} at step {}{}, versions never change; choose another name", name,
                         existing->checkpoint_id, existing->marks.step, existing->payload == PayloadType::kI8Rows ? " as int8" : "");
  }
  const std::string directory = versions_directory_ + "/" + name, building = fmt::format("{}/{}{}", versions_directory_, kBuilding, name);
  if (fs::exists(building)) RETURN_IF_ERROR(Remove(building));
  absl::Cleanup given_up = [&] {
    std::error_code ignored;
    fs::remove_all(building, ignored);
  };
  CutDigest digest = cut.digest;
  if (payload == PayloadType::kBank) {
    RETURN_IF_ERROR(CloneStore(cut.directory + kWeights, building + kWeights));
  } else {
    ASSIGN_OR_RETURN(digest, ConvertWeights(cut, building, convert));
  }
  MEMBANK_FAIL_POINT("publish.cloned");
  Json manifest = MarksToJson(cut.marks, digest, cut.held, spec_hash_);
  AddVersionFacts(id, payload, &manifest);
  RETURN_IF_ERROR(WriteCheckedJson(building + kManifest, manifest));
  MEMBANK_FAIL_POINT("publish.manifest");
  RETURN_IF_ERROR(MakeVisible(building, directory));
  std::move(given_up).Cancel();
  MEMBANK_FAIL_POINT("publish.visible");
  ASSIGN_OR_RETURN(std::shared_ptr<BlockStore> weights, open_store_(directory + kWeights, StoreAccess::kReadOnly));
  absl::MutexLock lock(&mu_);
  versions_[name] = {name, id, cut.marks, digest, cut.held, payload, absl::OkStatus(), std::move(weights)};
  return absl::OkStatus();
}

// --- Purging -----------------------------------------------------------------------------------------------------------------------------

absl::StatusOr<uint64_t> CheckpointStore::Purge(const std::vector<KeyRange>& ranges) {
  ++purges_;
  const absl::Cleanup ended = [this] { ++purges_; };
  for (const std::string& parent : {checkpoints_, versions_directory_})
    for (const std::string& name : SubdirectoryNames(parent))
      if (name[0] == '.') RETURN_IF_ERROR(Remove(parent + "/" + name));
  uint64_t count = 0;
  for (const Cut& cut : List()) {
    const absl::StatusOr<CutDigest> digest = PurgeDirectory(cut.directory, cut.digest, ranges);
    if (!digest.ok()) return Annotate(digest.status(), fmt::format("checkpoint {} in {}", cut.id, cut.directory));
    absl::MutexLock lock(&mu_);
    cuts_[cut.id].digest = *digest;
    ++count;
  }
  std::map<std::string, Version> versions;
  {
    absl::MutexLock lock(&mu_);
    versions = versions_;
  }
  for (const auto& [name, version] : versions) {
    const absl::Status purged = PurgeVersion(version, ranges);
    if (!purged.ok()) return Annotate(purged, fmt::format("version {} in {}", name, versions_directory_));
    ++count;
  }
  return count;
}

absl::Status CheckpointStore::PurgeVersion(const Version& version, const std::vector<KeyRange>& ranges) {
  const std::string directory = versions_directory_ + "/" + version.name;
  if (!version.damage.ok()) {
    LOG_ERROR("removing {}: it could not be read, so nothing says that it is free of what is purged", directory);
    RETURN_IF_ERROR(Remove(directory));
    absl::MutexLock lock(&mu_);
    versions_.erase(version.name);
    return absl::OkStatus();
  }
  ASSIGN_OR_RETURN(const CutDigest digest, PurgeDirectory(directory, version.digest, ranges));
  ASSIGN_OR_RETURN(std::shared_ptr<BlockStore> weights, open_store_(directory + kWeights, StoreAccess::kReadOnly));
  absl::MutexLock lock(&mu_);
  versions_[version.name].digest = digest;
  std::swap(versions_[version.name].weights, weights);  // calls that began before read the old files, which have no names any more
  return absl::OkStatus();
}

// In place: tables of an engine are never modified, so those shared with other stores stay as they are. The manifest first: whoever comes back
// after a crash finds the digest of the blocks with the ranges or without them, anything else is damage, which stays recorded.
absl::StatusOr<CutDigest> CheckpointStore::PurgeDirectory(const std::string& directory, const CutDigest& recorded,
                                                          const std::vector<KeyRange>& ranges) {
  CutDigest digest = recorded;
  for (const char* part : {kWeights, kState}) {
    if (!fs::exists(directory + part)) continue;  // versions have no state
    ASSIGN_OR_RETURN(const std::unique_ptr<BlockStore> store, open_store_(directory + part, StoreAccess::kReadWrite));
    if (part == kWeights) {
      CutDigest all, kept;
      const absl::Status scanned = store->Scan(kBlockKeyPrefix, [&](std::string_view key, absl::Span<const uint8_t> value) -> absl::Status {
        ASSIGN_OR_RETURN(const BlockId id, ParseBlockKey(key));
        ASSIGN_OR_RETURN(const WeightsRecord record, DecodeWeightsHeader(value));
        all.Add(id, record.version, record.crc32c);
        const bool purged = std::any_of(ranges.begin(), ranges.end(), [&](const KeyRange& range) { return range.first <= key && key < range.last; });
        if (!purged) kept.Add(id, record.version, record.crc32c);
        return absl::OkStatus();
      });
      if (!scanned.ok() && !absl::IsDataLoss(scanned)) return scanned;
      if (scanned.ok() && (all == recorded || kept == recorded)) {
        digest = kept;
        ASSIGN_OR_RETURN(Json manifest, ReadCheckedJson(directory + kManifest));
        manifest["blocks"] = kept.blocks;
        manifest["blocks_crc32c"] = kept.crc32c;
        RETURN_IF_ERROR(WriteCheckedJson(directory + kManifest, manifest));
      } else {
        LOG_ERROR("{} is damaged and stays so: its blocks are not those of its manifest", directory);
      }
      MEMBANK_FAIL_POINT("purge.manifest");
    }
    for (const KeyRange& range : ranges) RETURN_IF_ERROR(store->Erase(range.first, range.last));
    MEMBANK_FAIL_POINT("purge.erased");
  }
  return digest;
}

absl::StatusOr<Cut> CheckpointStore::Find(const std::string& id) const {
  RETURN_IF_ERROR(CheckName("checkpoint id", id));
  absl::MutexLock lock(&mu_);
  const auto it = cuts_.find(id);
  if (it != cuts_.end()) return it->second;
  std::vector<std::string> ids;
  for (const auto& [known, cut] : cuts_) ids.push_back(known);
  return NotFound("checkpoint \"{}\" does not exist here; there are: {}", id, ids.empty() ? "none" : fmt::format("{}", fmt::join(ids, ", ")));
}

std::optional<Cut> CheckpointStore::LastCommitted() const {
  absl::MutexLock lock(&mu_);
  const Cut* last = nullptr;
  for (const auto& [id, cut] : cuts_)
    if (cut.committed > (last == nullptr ? 0 : last->committed)) last = &cut;
  return last == nullptr ? std::nullopt : std::optional<Cut>(*last);
}

std::vector<Cut> CheckpointStore::List() const {
  std::vector<Cut> cuts;
  {
    absl::MutexLock lock(&mu_);
    for (const auto& [id, cut] : cuts_) cuts.push_back(cut);
  }
  std::sort(cuts.begin(), cuts.end(), [](const Cut& a, const Cut& b) { return a.prepared < b.prepared; });
  return cuts;
}

absl::StatusOr<CheckpointStore::Version> CheckpointStore::FindVersion(const std::string& name) const {
  absl::MutexLock lock(&mu_);
  const auto it = versions_.find(name);
  if (it != versions_.end()) {
    if (!it->second.damage.ok()) return Annotate(it->second.damage, "bank version " + name);
    return it->second;
  }
  std::vector<std::string> names;
  for (const auto& [known, version] : versions_) names.push_back(known);
  return NotFound("bank version \"{}\" is not published here; published: {}", name,
                  names.empty() ? "none" : fmt::format("{}", fmt::join(names, ", ")));
}

std::vector<BankVersion> CheckpointStore::ListVersions() const {
  absl::MutexLock lock(&mu_);
  std::vector<BankVersion> whole;
  for (const auto& [name, version] : versions_)
    if (version.damage.ok()) whole.push_back({name, version.payload});
  return whole;
}

uint64_t CheckpointStore::NextSequence() const {
  absl::MutexLock lock(&mu_);
  uint64_t last = 0;
  for (const auto& [id, cut] : cuts_) last = std::max({last, cut.prepared, cut.committed});
  return last + 1;
}

absl::Status CheckpointStore::Remove(const std::string& directory) {
  const fs::path path(directory);
  std::string trash = directory;
  if (!path.filename().string().starts_with(kTrash)) {
    trash = path.parent_path() / (std::string(kTrash) + path.filename().string());
    std::error_code ignored;
    fs::remove_all(trash, ignored);
    if (::rename(directory.c_str(), trash.c_str()) != 0) return absl::ErrnoToStatus(errno, fmt::format("rename {} to {}", directory, trash));
    RETURN_IF_ERROR(SyncDirectory(path.parent_path()));
    MEMBANK_FAIL_POINT("checkpoint.remove.renamed");
  }
  std::error_code error;
  fs::remove_all(trash, error);
  MEMBANK_FAIL_POINT("checkpoint.remove.removed");
  return error ? absl::ErrnoToStatus(error.value(), "remove " + trash) : absl::OkStatus();
}

void CheckpointStore::CollectGarbage(const Cut& newest, uint32_t keep) {
  std::vector<Cut> committed;
  std::vector<std::string> garbage;
  for (const Cut& cut : List()) {
    if (cut.committed > 0) committed.push_back(cut);
    else if (cut.prepared < newest.prepared) garbage.push_back(cut.id);
  }
  std::sort(committed.begin(), committed.end(), [](const Cut& a, const Cut& b) { return a.committed > b.committed; });
  for (size_t i = keep; i < committed.size(); ++i) garbage.push_back(committed[i].id);
  for (const std::string& id : garbage) {
    MEMBANK_FAIL_POINT("checkpoint.collect.next");
    const absl::Status removed = Delete(id);
    if (!removed.ok()) LOG_WARN("checkpoint {} could not be removed, the next start will: {}", id, std::string(removed.message()));
  }
}

}  // namespace membank
