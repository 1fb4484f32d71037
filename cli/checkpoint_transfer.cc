#include "cli/checkpoint_transfer.h"

#include <algorithm>
#include <memory>
#include <vector>

#include "common/bank/block_frame.h"
#include "common/base/bytes.h"
#include "common/base/crc32c.h"
#include "common/base/json.h"
#include "common/base/progress.h"
#include "common/base/status_macros.h"
#include "nlohmann/json.hpp"

namespace membank {
namespace {

using Json = nlohmann::json;

constexpr int kFormat = 1;
constexpr uint64_t kPartBytes = 64 << 20, kPieceBytes = 1 << 20;
constexpr char kManifest[] = "manifest.json";

struct Part {
  std::string name;
  uint64_t bytes = 0;
  uint32_t crc32c = 0;
};

struct Backup {
  TransferSummary summary;
  std::string spec_hash;
  std::vector<Part> parts;
};

absl::StatusOr<Backup> ReadManifest(ObjectStore& store) {
  absl::StatusOr<std::string> text = store.Get(kManifest);
  if (absl::IsNotFound(text.status())) return NotFound("there is no backup: {} does not exist (an unfinished one has no manifest)", store.PlaceOf(kManifest));
  RETURN_IF_ERROR(text.status());
  const absl::StatusOr<Json> parsed = ParseJson(*text);
  if (!parsed.ok()) return DataLoss("{} is damaged: {}", store.PlaceOf(kManifest), std::string(parsed.status().message()));
  const Json& json = *parsed;
  try {
    if (json.at("format") != kFormat)
      return FailedPrecondition("{} has format {}, this release reads {}", store.PlaceOf(kManifest), json.at("format").dump(), kFormat);
    Backup backup;
    backup.spec_hash = json.at("spec_hash");
    backup.summary = {json.at("id"), {json.at("step"), json.at("run_id"), json.at("run_epoch")}, json.at("blocks"), json.at("bytes")};
    for (const Json& part : json.at("parts")) backup.parts.push_back({part.at("name"), part.at("bytes"), part.at("crc32c")});
    backup.summary.parts = backup.parts.size();
    return backup;
  } catch (const Json::exception& e) {
    return DataLoss("{} is damaged: {}", store.PlaceOf(kManifest), e.what());
  }
}

absl::StatusOr<std::string> ReadPart(ObjectStore& store, const Part& part) {
  ASSIGN_OR_RETURN(std::string bytes, store.Get(part.name));
  if (bytes.size() != part.bytes) return DataLoss("{} has {} bytes, the manifest says {}", store.PlaceOf(part.name), bytes.size(), part.bytes);
  const uint32_t crc = Crc32c(bytes.data(), bytes.size());
  if (crc != part.crc32c)
    return DataLoss("{} has CRC32C {:08x}, the manifest says {:08x}", store.PlaceOf(part.name), crc, part.crc32c);
  return bytes;
}

// --- Out ---------------------------------------------------------------------------------------------------------------------------------

class PartWriter {
 public:
  explicit PartWriter(ObjectStore& store) : store_(store) {}

  absl::Status Append(std::string_view bytes) {
    while (!bytes.empty()) {
      const size_t take = std::min<uint64_t>(bytes.size(), kPartBytes - buffer_.size());
      buffer_.append(bytes.substr(0, take));
      bytes.remove_prefix(take);
      if (buffer_.size() == kPartBytes) RETURN_IF_ERROR(Flush());
    }
    return absl::OkStatus();
  }
  absl::Status Flush() {
    if (buffer_.empty()) return absl::OkStatus();
    const Part part{fmt::format("part-{:08}", parts_.size() + 1), buffer_.size(), Crc32c(buffer_.data(), buffer_.size())};
    RETURN_IF_ERROR(store_.Put(part.name, buffer_));
    parts_.push_back({{"name", part.name}, {"bytes", part.bytes}, {"crc32c", part.crc32c}});
    buffer_.clear();
    return absl::OkStatus();
  }
  const Json& parts() const { return parts_; }

 private:
  ObjectStore& store_;
  std::string buffer_;
  Json parts_ = Json::array();
};

// The frames of one server, one after the other.
class ServerFrames {
 public:
  ServerFrames(CheckpointClient& client, size_t server, const std::string& id) : client_(client), server_(server), id_(id) {}

  // The header of the next frame is `frame()`, unless the stream ended.
  absl::Status Next() {
    while (buffer_.size() - used_ < kFrameHeaderBytes && !ended_) RETURN_IF_ERROR(Fill());
    if (ended_ && used_ == buffer_.size()) {
      done_ = true;
      return absl::OkStatus();
    }
    ASSIGN_OR_RETURN(frame_, DecodeFrameHeader(AsBytes(std::string_view(buffer_).substr(used_))));
    return absl::OkStatus();
  }
  absl::Status CopyFrame(PartWriter* out) {
    for (uint64_t left = frame_.bytes(); left > 0;) {
      if (used_ == buffer_.size() && ended_) return DataLoss("the blocks of server {} end in the middle of {}", server_, ToString(frame_.id));
      if (used_ == buffer_.size()) RETURN_IF_ERROR(Fill());
      const size_t take = std::min<uint64_t>(left, buffer_.size() - used_);
      RETURN_IF_ERROR(out->Append(std::string_view(buffer_).substr(used_, take)));
      used_ += take;
      left -= take;
    }
    return absl::OkStatus();
  }
  bool done() const { return done_; }
  const BlockFrame& frame() const { return frame_; }
  const CheckpointHistory& history() const { return history_; }

 private:
  absl::Status Fill() {
    buffer_.erase(0, used_);
    used_ = 0;
    ASSIGN_OR_RETURN(const CheckpointPiece piece, client_.Read(server_, id_, block_, offset_, &history_));
    buffer_ += piece.data;
    block_ = piece.next_block;
    offset_ = piece.next_offset;
    ended_ = piece.data.empty();
    return absl::OkStatus();
  }

  CheckpointClient& client_;
  const size_t server_;
  const std::string id_;
  BlockId block_;
  uint64_t offset_ = 0;
  std::string buffer_;
  size_t used_ = 0;
  bool ended_ = false, done_ = false;
  BlockFrame frame_;
  CheckpointHistory history_;
};

// --- In ----------------------------------------------------------------------------------------------------------------------------------

// Sends frames to the servers that own their blocks.
class FrameRouter {
 public:
  FrameRouter(CheckpointClient& client, const BankSpec& spec, const std::string& id)
      : client_(client), spec_(spec), id_(id), servers_(client.slot_map().servers().size()) {}

  absl::Status Begin() {
    for (size_t i = 0; i < servers_.size(); ++i) RETURN_IF_ERROR(client_.Write(i, id_, 0, ""));
    return absl::OkStatus();
  }
  absl::Status Append(std::string_view bytes) {
    while (!bytes.empty()) {
      if (left_ == 0) {
        const size_t take = std::min(bytes.size(), kFrameHeaderBytes - header_.size());
        header_.append(bytes.substr(0, take));
        bytes.remove_prefix(take);
        if (header_.size() == kFrameHeaderBytes) RETURN_IF_ERROR(BeginFrame());
        continue;
      }
      const size_t take = std::min<uint64_t>(bytes.size(), left_);
      RETURN_IF_ERROR(Send(bytes.substr(0, take)));
      bytes.remove_prefix(take);
      left_ -= take;
    }
    return absl::OkStatus();
  }
  absl::Status Finish(const TransferSummary& expected) {
    if (left_ > 0 || !header_.empty() || blocks_ != expected.blocks)
      return DataLoss("the backup ends after {} of {} blocks", blocks_, expected.blocks);
    for (size_t i = 0; i < servers_.size(); ++i) RETURN_IF_ERROR(Flush(i));
    for (size_t i = 0; i < servers_.size(); ++i) RETURN_IF_ERROR(client_.Finish(i, id_, expected.history));
    return absl::OkStatus();
  }

 private:
  struct Server {
    std::string buffer;
    uint64_t sent = 0;
  };

  absl::Status BeginFrame() {
    ASSIGN_OR_RETURN(const BlockFrame frame, DecodeFrameHeader(AsBytes(header_)));
    if (!spec_.Contains(frame.id)) return DataLoss("the backup holds block {}, which is not in the bank", ToString(frame.id));
    owner_ = client_.slot_map().OwnerOf(frame.id);
    left_ = frame.weights_bytes + frame.state_bytes;
    ++blocks_;
    const std::string header = std::exchange(header_, "");
    return Send(header);
  }
  absl::Status Send(std::string_view bytes) {
    Server& server = servers_[owner_];
    while (!bytes.empty()) {
      const size_t take = std::min<uint64_t>(bytes.size(), kPieceBytes - server.buffer.size());
      server.buffer.append(bytes.substr(0, take));
      bytes.remove_prefix(take);
      if (server.buffer.size() == kPieceBytes) RETURN_IF_ERROR(Flush(owner_));
    }
    return absl::OkStatus();
  }
  absl::Status Flush(size_t index) {
    Server& server = servers_[index];
    if (server.buffer.empty()) return absl::OkStatus();
    const uint64_t bytes = server.buffer.size();
    RETURN_IF_ERROR(client_.Write(index, id_, server.sent, std::exchange(server.buffer, "")));
    server.sent += bytes;
    return absl::OkStatus();
  }

  CheckpointClient& client_;
  const BankSpec& spec_;
  const std::string id_;
  std::vector<Server> servers_;
  std::string header_;
  uint64_t left_ = 0, blocks_ = 0;
  size_t owner_ = 0;
};

}  // namespace

absl::StatusOr<TransferSummary> ExportCheckpoint(CheckpointClient& client, const BankSpec& spec, const std::string& id, ObjectStore& store) {
  if (const absl::Status there = store.Get(kManifest).status(); there.ok())
    return AlreadyExists("{} exists; a backup is never written over another one, choose another place", store.PlaceOf(kManifest));
  else if (!absl::IsNotFound(there)) return there;
  std::vector<std::unique_ptr<ServerFrames>> servers;
  for (size_t i = 0; i < client.slot_map().servers().size(); ++i) {
    servers.push_back(std::make_unique<ServerFrames>(client, i, id));
    RETURN_IF_ERROR(servers.back()->Next());
    if (servers.back()->history() != servers.front()->history())
      return FailedPrecondition("checkpoint {} is at step {} of epoch {} on one server and at step {} of epoch {} on another; it is no cut of "
                                "the whole bank", id, servers.front()->history().step, servers.front()->history().run_epoch,
                                servers.back()->history().step, servers.back()->history().run_epoch);
  }
  TransferSummary summary{id, servers.front()->history()};
  PartWriter parts(store);
  Progress progress("export", "blocks", 0);
  while (true) {
    ServerFrames* first = nullptr;
    for (const auto& server : servers)
      if (!server->done() && (first == nullptr || server->frame().id < first->frame().id)) first = server.get();
    if (first == nullptr) break;
    ++summary.blocks;
    summary.bytes += first->frame().bytes();
    RETURN_IF_ERROR(first->CopyFrame(&parts));
    RETURN_IF_ERROR(first->Next());
    progress.Update(summary.blocks, fmt::format("{:.1f} MB", summary.bytes / 1e6));
  }
  RETURN_IF_ERROR(parts.Flush());
  summary.parts = parts.parts().size();
  ASSIGN_OR_RETURN(const Json spec_json, ParseJson(spec.ToJson()));
  const Json manifest = {{"format", kFormat}, {"spec", spec_json}, {"spec_hash", spec.Hash()}, {"id", id},
                         {"step", summary.history.step}, {"run_id", summary.history.run_id}, {"run_epoch", summary.history.run_epoch},
                         {"blocks", summary.blocks}, {"bytes", summary.bytes}, {"parts", parts.parts()}};
  RETURN_IF_ERROR(store.Put(kManifest, manifest.dump(1) + "\n", /*only_new=*/true));
  return summary;
}

absl::StatusOr<TransferSummary> ImportCheckpoint(ObjectStore& store, const BankSpec& spec, const std::string& id, CheckpointClient& client) {
  ASSIGN_OR_RETURN(Backup backup, ReadManifest(store));
  if (backup.spec_hash != spec.Hash())
    return FailedPrecondition("{} is of a bank with spec hash {}, the servers' bank has {}; start the servers with the spec in the manifest",
                              store.PlaceOf(kManifest), backup.spec_hash, spec.Hash());
  if (!id.empty()) backup.summary.id = id;
  FrameRouter router(client, spec, backup.summary.id);
  RETURN_IF_ERROR(router.Begin());
  Progress progress("import", "parts", backup.parts.size());
  for (size_t i = 0; i < backup.parts.size(); ++i) {
    ASSIGN_OR_RETURN(const std::string bytes, ReadPart(store, backup.parts[i]));
    RETURN_IF_ERROR(router.Append(bytes));
    progress.Update(i + 1, "");
  }
  RETURN_IF_ERROR(router.Finish(backup.summary));
  return backup.summary;
}

absl::StatusOr<std::vector<std::string>> VerifyBackup(ObjectStore& store, TransferSummary* summary) {
  ASSIGN_OR_RETURN(const Backup backup, ReadManifest(store));
  *summary = backup.summary;
  std::vector<std::string> damage;
  uint64_t bytes = 0;
  for (const Part& part : backup.parts) {
    bytes += part.bytes;
    const absl::Status status = ReadPart(store, part).status();
    if (absl::IsNotFound(status) || absl::IsDataLoss(status)) damage.push_back(std::string(status.message()));
    else RETURN_IF_ERROR(status);
  }
  if (bytes != backup.summary.bytes)
    damage.push_back(fmt::format("{} lists parts of {} bytes but says that the checkpoint has {}", store.PlaceOf(kManifest), bytes, backup.summary.bytes));
  return damage;
}

}  // namespace membank
