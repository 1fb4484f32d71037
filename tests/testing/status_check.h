// Assertions about absl::Status and absl::StatusOr; they print the status.
#pragma once

#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "gtest/gtest.h"

namespace membank {

inline absl::Status StatusOf(const absl::Status& status) { return status; }
template <typename T>
absl::Status StatusOf(const absl::StatusOr<T>& result) {
  return result.status();
}

}  // namespace membank

#define ASSERT_OK(expression)                                     \
  do {                                                            \
    const absl::Status checked_ = ::membank::StatusOf(expression); \
    ASSERT_TRUE(checked_.ok()) << checked_;                       \
  } while (false)

#define EXPECT_OK(expression)                                     \
  do {                                                            \
    const absl::Status checked_ = ::membank::StatusOf(expression); \
    EXPECT_TRUE(checked_.ok()) << checked_;                       \
  } while (false)

#define EXPECT_CODE(expression, expected_code, text)                                      \
  do {                                                                                    \
    const absl::Status checked_ = ::membank::StatusOf(expression);                        \
    EXPECT_EQ(checked_.code(), absl::StatusCode::expected_code) << checked_;              \
    EXPECT_NE(std::string(checked_.message()).find(text), std::string::npos) << checked_; \
  } while (false)
