#include "common/base/progress.h"

#include <unistd.h>

#include <cstdio>

#include "fmt/format.h"

namespace membank {

Progress::Progress(std::string what, std::string unit, uint64_t total, uint64_t done)
    : what_(std::move(what)), unit_(std::move(unit)), total_(total), first_(done), terminal_(::isatty(STDERR_FILENO) == 1),
      start_(std::chrono::steady_clock::now()), printed_(start_), done_(done) {}

Progress::~Progress() {
  if (dirty_) Print(/*last=*/true);
}

void Progress::Update(uint64_t done, const std::string& note) {
  done_ = done;
  note_ = note;
  dirty_ = true;
  const auto now = std::chrono::steady_clock::now();
  const auto interval = terminal_ ? std::chrono::milliseconds(200) : std::chrono::milliseconds(10000);
  if (now - printed_ < interval) return;
  printed_ = now;
  Print(/*last=*/false);
}

void Progress::Print(bool last) {
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
  const double rate = seconds > 0 ? static_cast<double>(done_ - first_) / seconds : 0;
  std::string line = what_ + "  ";
  line += total_ > 0 ? fmt::format("{}/{} {}  {:.0f}%", done_, total_, unit_, 100.0 * done_ / total_)
                     : fmt::format("{} {}", done_, unit_);
  line += rate >= 10 ? fmt::format("  {:.0f}/s", rate) : fmt::format("  {:.2f}/s", rate);
  if (last) {
    line += "  took " + FormatDuration(seconds);
  } else if (total_ > 0 && rate > 0) {
    line += "  ETA " + FormatDuration((total_ - done_) / rate);
  }
  if (!note_.empty()) line += "  " + note_;
  std::fprintf(stderr, terminal_ ? (last ? "\r\033[K%s\n" : "\r\033[K%s") : "%s\n", line.c_str());
  std::fflush(stderr);
}

std::string FormatDuration(double seconds) {
  const auto total = static_cast<int64_t>(seconds + 0.5);
  if (total >= 3600) return fmt::format("{}h {:02}m", total / 3600, total % 3600 / 60);
  if (total >= 60) return fmt::format("{}m {:02}s", total / 60, total % 60);
  return seconds < 9.95 ? fmt::format("{:.1f}s", seconds) : fmt::format("{}s", total);
}

}  // namespace membank
