// RUN_DIR/log.jsonl, one line per logged step and one per validation ({"step", "validation"}), and RUN_DIR/loss.svg drawn from it. Lines written after the checkpoint that a run resumes
// from are cut off, so the log of a resumed run reads like that of a run that was never interrupted. One thread.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "model_worker/train/validation.h"
#include "nlohmann/json.hpp"

namespace membank {

// Of one step; seconds are per step. Fetching, pushing and applying overlap with compute; `wait` is what the compute thread stood still.
struct StepRecord {
  uint64_t step = 0;
  double loss = 0;                       // mean over all targets of the batch (of the fetched ones when there is a generic control)
  bool has_generic = false;
  double fetched_loss = 0, generic_loss = 0;  // per kind of memory, when the step has both
  double z_loss = 0;                     // what it adds to the loss that is minimised; not part of the others
  uint64_t tokens = 0;                   // with a generic control every sequence counts twice
  double learning_rate = 0, gradient_norm = 0;
  double seconds = 0, data_seconds = 0, fetch_seconds = 0, wait_seconds = 0, compute_seconds = 0, push_seconds = 0, apply_seconds = 0;
  uint64_t fetched_bytes = 0, pushed_bytes = 0;

  nlohmann::json ToJson() const;
};

class RunLog {
 public:
  // Keeps the lines of steps <= `last_step` of an existing log. `memory`: what the chart calls the loss that is not the generic memory's.
  static absl::StatusOr<std::unique_ptr<RunLog>> Open(const std::string& run_directory, uint64_t last_step, std::string memory);
  ~RunLog();
  RunLog(const RunLog&) = delete;
  RunLog& operator=(const RunLog&) = delete;

  absl::Status Append(const StepRecord& record);
  absl::Status AppendValidation(uint64_t step, const ValidationResult& result);
  absl::Status Sync();  // before a checkpoint is committed
  absl::Status DrawChart() const;

 private:
  struct Point {
    double step, loss, generic_loss;  // generic_loss NaN where there is none
  };
  RunLog(std::string directory, std::string memory, int file) : directory_(std::move(directory)), memory_(std::move(memory)), file_(file) {}
  absl::Status Write(const nlohmann::json& line);
  void AddPoint(const nlohmann::json& line);

  const std::string directory_, memory_;
  const int file_;
  std::vector<Point> points_;
  std::map<std::string, std::vector<std::pair<double, double>>> validation_;  // by memory: step, loss
};

}  // namespace membank
