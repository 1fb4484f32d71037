// One error language: absl::Status inside, equal gRPC codes outside (design/wire.md section 5). Debian's abseil has no status
// macros, so they are here. A message names the thing, the value it had, and the values allowed.
#pragma once

#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "fmt/format.h"

#define MEMBANK_CONCAT_INNER_(a, b) a##b
#define MEMBANK_CONCAT_(a, b) MEMBANK_CONCAT_INNER_(a, b)

#define RETURN_IF_ERROR(expr)                        \
  do {                                               \
    absl::Status membank_status_ = (expr);           \
    if (!membank_status_.ok()) return membank_status_; \
  } while (false)

#define ASSIGN_OR_RETURN(lhs, expr) \
  ASSIGN_OR_RETURN_IMPL_(MEMBANK_CONCAT_(membank_statusor_, __LINE__), lhs, expr)
#define ASSIGN_OR_RETURN_IMPL_(tmp, lhs, expr)     \
  auto tmp = (expr);                               \
  if (!tmp.ok()) return std::move(tmp).status();   \
  lhs = std::move(tmp).value()

namespace membank {

// InvalidArgument("level {} ...", level): the fmt form of absl's error constructors.
#define MEMBANK_DEFINE_ERROR_(Name)                                                    \
  template <typename... Args>                                                          \
  absl::Status Name(fmt::format_string<Args...> format, Args&&... args) {              \
    return absl::Name##Error(fmt::format(format, std::forward<Args>(args)...));        \
  }
MEMBANK_DEFINE_ERROR_(InvalidArgument)
MEMBANK_DEFINE_ERROR_(NotFound)
MEMBANK_DEFINE_ERROR_(AlreadyExists)
MEMBANK_DEFINE_ERROR_(FailedPrecondition)
MEMBANK_DEFINE_ERROR_(OutOfRange)
MEMBANK_DEFINE_ERROR_(ResourceExhausted)
MEMBANK_DEFINE_ERROR_(Unavailable)
MEMBANK_DEFINE_ERROR_(DeadlineExceeded)
MEMBANK_DEFINE_ERROR_(Cancelled)
MEMBANK_DEFINE_ERROR_(DataLoss)
MEMBANK_DEFINE_ERROR_(Internal)
MEMBANK_DEFINE_ERROR_(Aborted)
MEMBANK_DEFINE_ERROR_(Unimplemented)
MEMBANK_DEFINE_ERROR_(PermissionDenied)
#undef MEMBANK_DEFINE_ERROR_

// The same status with "context: " in front of its message.
absl::Status Annotate(const absl::Status& status, const std::string& context);

}  // namespace membank
