// The directory of a run:
//   run.json                       the run's identity and the newest epoch it used
//   log.jsonl, loss.svg            (run_log.h)
//   checkpoints/<id>/              anchor/ and anchor_optimizer[-<rank>].safetensors when it learns, error_feedback-<rank>.safetensors with int8 gradients,
//   checkpoints/<id>/manifest.json written last by atomic rename: it commits the checkpoint of worker and servers together, and says the checksums
//                                  of the files beside it
//   lock                           held by the trainer that is running
// Owned by the trainer; one thread. Errors name the file.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "nlohmann/json.hpp"

namespace membank {

struct RunIdentity {
  std::string run_id;         // fences other runs at the servers
  uint64_t epoch = 0;         // newest one this directory started
  uint64_t base_step = 0;     // the servers' head when the run began
};

struct RunCheckpoint {
  std::string id;             // at the servers and as the directory's name
  uint64_t step = 0;          // steps done: the data position follows from it
  uint64_t server_step = 0;   // the head that the servers saved
  nlohmann::json run;         // DescribeRun
  nlohmann::json files;       // beside the manifest, with their checksums (file_checksums.h); written by Commit
};

// The checkpoint of `step`, at the servers and as the directory's name.
std::string CheckpointId(const RunIdentity& identity, uint64_t step);

class RunDirectory {
 public:
  // Creates the directory if need be and locks it. FAILED_PRECONDITION when another trainer holds it.
  static absl::StatusOr<std::unique_ptr<RunDirectory>> Open(const std::string& path);
  ~RunDirectory();
  RunDirectory(const RunDirectory&) = delete;
  RunDirectory& operator=(const RunDirectory&) = delete;

  const std::string& path() const { return path_; }
  std::string CheckpointPath(const std::string& id) const { return CheckpointPath(path_, id); }
  static std::string CheckpointPath(const std::string& run_directory, const std::string& id) { return run_directory + "/checkpoints/" + id; }

  // NOT_FOUND when no run ever started here.
  absl::StatusOr<RunIdentity> ReadIdentity() const;
  absl::Status WriteIdentity(const RunIdentity& identity) const;

  // Committed ones, oldest first.
  absl::StatusOr<std::vector<RunCheckpoint>> Checkpoints() const;
  // Of a committed one: the files beside its manifest that are missing or damaged, a line each. Reads all of them; needs no lock, as any process
  // may look. NOT_FOUND without such a checkpoint.
  static absl::StatusOr<std::vector<std::string>> Verify(const std::string& run_directory, const std::string& id);
  // The commit. Whatever else belongs to the checkpoint must be in CheckpointPath(id) already.
  absl::Status Commit(const RunCheckpoint& checkpoint) const;
  // The manifest goes first, so that a crash in between leaves no half checkpoint.
  absl::Status Uncommit(const std::string& id) const;
  absl::Status RemoveFiles(const std::string& id) const;

 private:
  RunDirectory(std::string path, int lock) : path_(std::move(path)), lock_(lock) {}

  const std::string path_;
  const int lock_;  // file descriptor
};

}  // namespace membank
