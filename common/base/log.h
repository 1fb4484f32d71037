// Logging: spdlog to stderr, one line per event. LOG_INFO("served {} blocks", n). Thread-safe.
#pragma once

#include <string>

#include "spdlog/spdlog.h"

#define LOG_DEBUG(...) ::spdlog::debug(__VA_ARGS__)
#define LOG_INFO(...) ::spdlog::info(__VA_ARGS__)
#define LOG_WARN(...) ::spdlog::warn(__VA_ARGS__)
#define LOG_ERROR(...) ::spdlog::error(__VA_ARGS__)

namespace membank {

// Call once in main. `level` is trace, debug, info, warn, error or off; false when it is none of them.
bool InitLogging(const std::string& program, const std::string& level);

}  // namespace membank
