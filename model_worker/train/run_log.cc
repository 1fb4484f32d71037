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
  if (z_loss > 0) json["z_loss"] = z_loss;
  if (has_generic) {
    json["loss_fetched"] = fetched_loss;
    json["loss_generic"] = generic_loss;
  }
  return json;
}

absl::StatusOr<std::unique_ptr<RunLog>> RunLog::Open(const std::string& run_directory, uint64_t last_step, std::string memory) {
  const std::string path = run_directory + "/log.jsonl";
  std::string kept;
  std::vector<nlohmann::json> lines;
  if (std::filesystem::exists(path)) {
    ASSIGN_OR_RETURN(const std::string text, ReadFile(path));
    for (size_t begin = 0, end; (end = text.find('\n', begin)) != std::string::npos; begin = end + 1) {
      nlohmann::json line = ParseJson(std::string_view(text).substr(begin, end - begin)).value_or(nlohmann::json());
      if (!line.is_object() || !line.contains("step") || line["step"] > last_step) break;  // a line cut short by a crash ends the log, too
      kept.append(text, begin, end + 1 - begin);
      lines.push_back(std::move(line));
    }
  }
  RETURN_IF_ERROR(WriteFileAtomic(path, kept));
  const int file = open(path.c_str(), O_WRONLY | O_APPEND | O_CLOEXEC);
  if (file < 0) return PermissionDenied("cannot open {}: {}", path, std::strerror(errno));
  std::unique_ptr<RunLog> log(new RunLog(run_directory, std::move(memory), file));
  for (const nlohmann::json& line : lines) log->AddPoint(line);
  return log;
}

RunLog::~RunLog() { close(file_); }

absl::Status RunLog::Append(const StepRecord& record) { return Write(record.ToJson()); }

absl::Status RunLog::AppendValidation(uint64_t step, const ValidationResult& result) {
  return Write({{"step", step}, {"validation", result.ToJson()}});
}

absl::Status RunLog::Write(const nlohmann::json& json) {
  const std::string line = json.dump() + "\n";
  if (write(file_, line.data(), line.size()) != static_cast<ssize_t>(line.size()))
    return ResourceExhausted("cannot write {}/log.jsonl: {}", directory_, std::strerror(errno));
  AddPoint(json);
  return absl::OkStatus();
}

void RunLog::AddPoint(const nlohmann::json& line) {
  const double step = line["step"];
  if (line.contains("validation")) {
    for (const auto& [memory, value] : line["validation"].items())
      if (value.is_object()) validation_[memory].emplace_back(step, value.value("loss", 0.0));
    return;
  }
  points_.push_back({step, line.value("loss_fetched", line.value("loss", 0.0)),
                     line.value("loss_generic", std::numeric_limits<double>::quiet_NaN())});
}

absl::Status RunLog::Sync() {
  if (fdatasync(file_) != 0) return ResourceExhausted("cannot sync {}/log.jsonl: {}", directory_, std::strerror(errno));
  return absl::OkStatus();
}

absl::Status RunLog::DrawChart() const {
  LossSeries fetched{memory_, "#1f77b4", {}, {}}, generic{"generic memory", "#ff7f0e", {}, {}};
  for (const Point& point : points_) {
    fetched.steps.push_back(point.step);
    fetched.losses.push_back(point.loss);
    if (std::isnan(point.generic_loss)) continue;
    generic.steps.push_back(point.step);
    generic.losses.push_back(point.generic_loss);
  }
  std::vector<LossSeries> series = {std::move(fetched), std::move(generic)};
  for (const auto& [memory, color] : {std::pair("fetched", "#0b3d63"), std::pair("generic", "#8c4a00"), std::pair("none", "#2ca02c")}) {
    const auto found = validation_.find(memory);
    if (found == validation_.end()) continue;
    LossSeries& one = series.emplace_back(LossSeries{fmt::format("held out, {}", std::string_view(memory) == "none" ? "no memory" : memory), color, {}, {}});
    for (const auto& [step, loss] : found->second) {
      one.steps.push_back(step);
      one.losses.push_back(loss);
    }
  }
  return WriteFileAtomic(directory_ + "/loss.svg", DrawLossChart("Loss", series));
}

}  // namespace membank
