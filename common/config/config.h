// Settings of a program, one layer over CLI11: flag > environment > file > default. A setting is declared once, in
// <service>/options.{h,cc}, as a row `app.add_option("--cache-bytes", options->cache_bytes, "meaning and unit")->check(CLI::Range(..))`;
// this file derives the rest from the row: the environment variable (MEMBANK_CACHE_BYTES) and the key of the file (cache-bytes = ..., TOML).
// Used from main only, one thread, before anything else starts. What is wrong is printed to stderr and ends the program with code 2.
#pragma once

#include <functional>
#include <optional>
#include <string>

#include "CLI/CLI.hpp"
#include "absl/status/status.h"

namespace membank::config {

// Reads the settings into the variables bound to `app`. Adds --config FILE, --print-config (the effective settings, complete or not, as a file
// that --config reads back), --check-config and --version. Unknown flags and keys are errors that suggest the nearest known name.
// `validate` checks what one row cannot (a setting that needs another one); --check-config includes it.
// Returns the exit code when the program is done (help, version, a check, an error: 2), nothing when it should run:
//   if (auto code = config::Parse(app, argc, argv, [&] { return Validate(options); })) return *code;
// With sub-commands the environment and the suggestions work for their options too; --print-config and --check-config are left out.
std::optional<int> Parse(CLI::App& app, int argc, const char* const* argv, const std::function<absl::Status()>& validate = {});

// "--cache-bytes" -> "MEMBANK_CACHE_BYTES".
std::string EnvironmentName(const std::string& flag);

// The known name nearest to `name` in edit distance, or nothing when none is near.
std::optional<std::string> Nearest(const std::string& name, const std::vector<std::string>& known);

}  // namespace membank::config
