// Feeds damaged copies of a file to a reader: every truncation, and seeded random byte changes. The reader must answer with a status.
#pragma once

#include <cstdlib>
#include <fstream>
#include <functional>
#include <random>
#include <string>

#include <unistd.h>

#include "absl/status/status.h"
#include "gtest/gtest.h"

namespace membank {

inline std::string SourcePath(const std::string& path) { return std::string(std::getenv("MEMBANK_SOURCE_DIR")) + "/" + path; }

inline std::string WriteTemporary(const std::string& name, const std::string& contents) {
  const std::string path = ::testing::TempDir() + "membank_" + std::to_string(::getpid()) + "_" + name;
  std::ofstream(path, std::ios::binary) << contents;
  return path;
}

// Every proper prefix is an error that names the file; DATA_LOSS or, where the cut leaves something else than a truncated file,
// INVALID_ARGUMENT.
inline void ExpectCutsFail(const std::string& whole, const std::function<absl::Status(const std::string& path)>& read) {
  for (size_t size = 0; size < whole.size(); ++size) {
    const std::string path = WriteTemporary("cut", whole.substr(0, size));
    const absl::Status status = read(path);
    ASSERT_TRUE(status.code() == absl::StatusCode::kDataLoss || status.code() == absl::StatusCode::kInvalidArgument) << size << " " << status;
    ASSERT_NE(std::string(status.message()).find(path), std::string::npos) << status;
  }
  std::remove(WriteTemporary("cut", "").c_str());
}

// One to four random bytes changed: any status, no crash. Returns how many copies were refused.
inline int CountRefusedFlips(const std::string& whole, int copies, size_t first_bytes,
                             const std::function<absl::Status(const std::string& path)>& read) {
  std::mt19937 random(11);
  int refused = 0;
  for (int i = 0; i < copies; ++i) {
    std::string damaged = whole;
    for (uint32_t n = 1 + random() % 4; n > 0; --n) damaged[random() % first_bytes] = static_cast<char>(random());
    refused += read(WriteTemporary("flip", damaged)).ok() ? 0 : 1;
  }
  std::remove(WriteTemporary("flip", "").c_str());
  return refused;
}

}  // namespace membank
