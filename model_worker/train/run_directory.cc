#include "model_worker/train/run_directory.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>

#include "common/base/file.h"
#include "common/base/json.h"
#include "common/base/status_macros.h"
#include "common/base/version.h"
#include "model_worker/train/file_checksums.h"

namespace membank {
namespace {

constexpr int kFormat = 2;

absl::StatusOr<nlohmann::json> ReadJson(const std::string& path) {
  ASSIGN_OR_RETURN(const std::string text, ReadFile(path));
  absl::StatusOr<nlohmann::json> json = ParseJsonObject(text, path);
  return json.ok() ? std::move(json) : DataLoss("{}; the file is damaged", std::string(json.status().message()));
}

absl::StatusOr<RunCheckpoint> ReadManifest(const std::string& path) {
  ASSIGN_OR_RETURN(const nlohmann::json json, ReadJson(path));
  try {
    if (json.at("format") != kFormat) return FailedPrecondition("{} has format {}; this build reads {}", path, json.at("format").dump(), kFormat);
    return RunCheckpoint{json.at("id"), json.at("step"), json.at("server_step"), json.at("run"), json.at("files")};
  } catch (const nlohmann::json::exception& e) {
    return DataLoss("{}: {}", path, e.what());
  }
}

}  // namespace

std::string CheckpointId(const RunIdentity& identity, uint64_t step) {
  return fmt::format("{}-e{:04}-s{:08}", identity.run_id, identity.epoch, step);
}

absl::StatusOr<std::unique_ptr<RunDirectory>> RunDirectory::Open(const std::string& path) {
  RETURN_IF_ERROR(MakeDirectories(path + "/checkpoints"));
  const std::string lock_path = path + "/lock";
  const int lock = open(lock_path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644);
  if (lock < 0) return PermissionDenied("cannot open {}: {}", lock_path, std::strerror(errno));
  if (flock(lock, LOCK_EX | LOCK_NB) != 0) {
    close(lock);
    return FailedPrecondition("another trainer runs in {} (it holds {}); wait for it or give another --output", path, lock_path);
  }
  return std::unique_ptr<RunDirectory>(new RunDirectory(path, lock));
}

RunDirectory::~RunDirectory() { close(lock_); }

absl::StatusOr<RunIdentity> RunDirectory::ReadIdentity() const {
  const std::string path = path_ + "/run.json";
  if (!std::filesystem::exists(path)) return NotFound("{} does not exist; no run has started there", path);
  ASSIGN_OR_RETURN(const nlohmann::json json, ReadJson(path));
  try {
    return RunIdentity{json.at("run_id"), json.at("epoch"), json.at("base_step")};
  } catch (const nlohmann::json::exception& e) {
    return DataLoss("{}: {}", path, e.what());
  }
}

absl::Status RunDirectory::WriteIdentity(const RunIdentity& identity) const {
  const nlohmann::json json = {{"run_id", identity.run_id}, {"epoch", identity.epoch}, {"base_step", identity.base_step}};
  return WriteFileAtomic(path_ + "/run.json", json.dump(2) + "\n");
}

absl::StatusOr<std::vector<RunCheckpoint>> RunDirectory::Checkpoints() const {
  std::vector<RunCheckpoint> checkpoints;
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator(path_ + "/checkpoints", error)) {
    const std::string manifest = entry.path().string() + "/manifest.json";
    if (!std::filesystem::exists(manifest)) continue;
    ASSIGN_OR_RETURN(RunCheckpoint checkpoint, ReadManifest(manifest));
    checkpoints.push_back(std::move(checkpoint));
  }
  if (error) return NotFound("cannot list {}/checkpoints: {}", path_, error.message());
  // Ids hold the epoch, so of two checkpoints of one step the later attempt comes last.
  std::sort(checkpoints.begin(), checkpoints.end(),
            [](const RunCheckpoint& a, const RunCheckpoint& b) { return std::tie(a.step, a.id) < std::tie(b.step, b.id); });
  return checkpoints;
}

absl::StatusOr<std::vector<std::string>> RunDirectory::Verify(const std::string& run_directory, const std::string& id) {
  const std::string directory = CheckpointPath(run_directory, id), manifest = directory + "/manifest.json";
  if (!std::filesystem::exists(manifest)) return NotFound("{} does not exist: run {} has no checkpoint {}", manifest, run_directory, id);
  ASSIGN_OR_RETURN(const RunCheckpoint checkpoint, ReadManifest(manifest));
  return DamagedFiles(directory, checkpoint.files);
}

absl::Status RunDirectory::Commit(const RunCheckpoint& checkpoint) const {
  const std::string directory = CheckpointPath(checkpoint.id);
  RETURN_IF_ERROR(MakeDirectories(directory));
  RETURN_IF_ERROR(SyncDirectory(directory));
  RETURN_IF_ERROR(SyncDirectory(path_ + "/checkpoints"));
  ASSIGN_OR_RETURN(const nlohmann::json files, ChecksumFiles(directory));
  const nlohmann::json json = {{"format", kFormat}, {"id", checkpoint.id}, {"step", checkpoint.step}, {"server_step", checkpoint.server_step},
                               {"run", checkpoint.run}, {"files", files}, {"written_by", VersionString()}};
  return WriteFileAtomic(directory + "/manifest.json", json.dump(2) + "\n");
}

absl::Status RunDirectory::Uncommit(const std::string& id) const {
  std::error_code error;
  std::filesystem::remove(CheckpointPath(id) + "/manifest.json", error);
  if (error) return Unavailable("cannot remove {}/manifest.json: {}", CheckpointPath(id), error.message());
  return SyncDirectory(CheckpointPath(id));
}

absl::Status RunDirectory::RemoveFiles(const std::string& id) const {
  std::error_code error;
  std::filesystem::remove_all(CheckpointPath(id), error);
  if (error) return Unavailable("cannot remove {}: {}", CheckpointPath(id), error.message());
  return absl::OkStatus();
}

}  // namespace membank
