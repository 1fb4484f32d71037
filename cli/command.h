// How a family of sub-commands plugs into `membank`: each family has one function `void AddXxxCommand(CLI::App& app)` in cli/<family>.h
// that declares its options and says with SetAction what runs. Nothing runs while the command line is being parsed; main runs the chosen
// action afterwards. Used from main's thread only.
#pragma once

#include <functional>
#include <memory>
#include <utility>

#include "CLI/CLI.hpp"
#include "absl/status/status.h"

namespace membank {

// `action` runs when `command` (a leaf sub-command) was chosen. Values that options are bound to live in a std::shared_ptr captured by it:
//   auto options = std::make_shared<Options>();
//   command->add_option("--output", options->output, "...")->required();
//   SetAction(command, [options] { return Build(*options); });
void SetAction(CLI::App* command, std::function<absl::Status()> action);

// A leaf sub-command of `parent` that calls run(*options).
template <typename Options>
CLI::App* AddCommand(CLI::App* parent, const char* name, const char* help, std::shared_ptr<Options> options, absl::Status (*run)(const Options&)) {
  CLI::App* app = parent->add_subcommand(name, help);
  SetAction(app, [options = std::move(options), run] { return run(*options); });
  return app;
}

// Runs the action of the command that was chosen; OK when none was.
absl::Status RunChosenAction();

}  // namespace membank
