#include "model_worker/train/run_log.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <limits>

#include "common/base/file.h"
#include "common/base/json.h"
#include "common/base/status_macros.h"
#include "model_worker/train/loss_chart.h"

namespace membank {

nlohmann::json StepRecord::ToJson() const {
  nlohmann::json json = {{"step", step},
                         {"loss", loss},
                         {"tokens", tokens},
                         {"tokens_per_second", seconds > 0 ? tokens / seconds : 0.0},
                         {"learning_rate", learning_rate},
                         {"gradient_norm", gradient_norm},
                         {"seconds", {{"step", seconds}, {"data", data_seconds}, {"fetch", fetch_seconds}, {"wait", wait_seconds},
                                      {"compute", compute_seconds}, {"push", push_seconds}, {"apply", apply_seconds}}},
                         {"fetched_bytes", fetched_bytes},
                         {"pushed_bytes", pushed_bytes}};
  if (has_generic) {
    json["loss_fetched"] = fetched_loss;
    json["loss_generic"] = generic_loss;
  }
  return json;
}

absl::StatusOr<std::unique_ptr<RunLog>> RunLog::Open(const std::string& run_directory, uint64_t last_step) {
  const std::string path = run_directory + "/log.jsonl";
  std::string kept;
  std::vector<Point> points;
  if (std::filesystem::exists(path)) {
    ASSIGN_OR_RETURN(const std::string text, ReadFile(path));
    for (size_t begin = 0, end; (end = text.find('\n', begin)) != std::string::npos; begin = end + 1) {
      const nlohmann::json line = ParseJson(std::string_view(text).substr(begin, end - begin)).value_or(nlohmann::json());
      if (!line.is_object() || !line.contains("step") || line["step"] > last_step) break;  // a line cut short by a crash ends the log, too
      kept.append(text, begin, end + 1 - begin);
      points.push_back({line["step"], line.value("loss", 0.0), line.value("loss_generic", std::numeric_limits<double>::quiet_NaN())});
      if (line.contains("loss_fetched")) points.back().loss = line["loss_fetched"];
    }
  }
  RETURN_IF_ERROR(WriteFileAtomic(path, kept));
  const int file = open(path.c_str(), O_WRONLY | O_APPEND | O_CLOEXEC);
  if (file < 0) return PermissionDenied("cannot open {}: {}", path, std::strerror(errno));
  std::unique_ptr<RunLog> log(new RunLog(run_directory, file));
  log->points_ = std::move(points);
  return log;
}

RunLog::~RunLog() { close(file_); }

absl::Status RunLog::Append(const StepRecord& record) {
  const std::string line = record.ToJson().dump() + "\n";
  if (write(file_, line.data(), line.size()) != static_cast<ssize_t>(line.size()))
    return ResourceExhausted("cannot write {}/log.jsonl: {}", directory_, std::strerror(errno));
  points_.push_back({static_cast<double>(record.step), record.has_generic ? record.fetched_loss : record.loss,
                     record.has_generic ? record.generic_loss : std::numeric_limits<double>::quiet_NaN()});
  return absl::OkStatus();
}

absl::Status RunLog::Sync() {
  if (fdatasync(file_) != 0) return ResourceExhausted("cannot sync {}/log.jsonl: {}", directory_, std::strerror(errno));
  return absl::OkStatus();
}

absl::Status RunLog::DrawChart() const {
  LossSeries fetched{"fetched memory", "#1f77b4", {}, {}}, generic{"generic memory", "#ff7f0e", {}, {}};
  for (const Point& point : points_) {
    fetched.steps.push_back(point.step);
    fetched.losses.push_back(point.loss);
    if (std::isnan(point.generic_loss)) continue;
    generic.steps.push_back(point.step);
    generic.losses.push_back(point.generic_loss);
  }
  return WriteFileAtomic(directory_ + "/loss.svg", DrawLossChart("Training loss", {fetched, generic}));
}

}  // namespace membank
