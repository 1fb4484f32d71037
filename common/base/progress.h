// One progress line for long work: "embed  1,200/8,900 pages  13%  310/s  ETA 25s". On a terminal it is redrawn in place, elsewhere
// printed every ten seconds. One thread.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>

namespace membank {

class Progress {
 public:
  // `unit` is a plural noun. `total` 0 means unknown: no percentage, no ETA. `done` is where a resumed run starts.
  Progress(std::string what, std::string unit, uint64_t total, uint64_t done = 0);
  ~Progress();  // ends the line

  void Update(uint64_t done, const std::string& note = "");

 private:
  void Print(bool last);

  const std::string what_, unit_;
  const uint64_t total_, first_;
  const bool terminal_;
  const std::chrono::steady_clock::time_point start_;
  std::chrono::steady_clock::time_point printed_;
  uint64_t done_;
  bool dirty_ = false;
  std::string note_;
};

// "1h 02m", "3m 20s", "25s".
std::string FormatDuration(double seconds);

}  // namespace membank
