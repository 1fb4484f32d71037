#include "cli/command.h"

#include <utility>

namespace membank {
namespace {

std::function<absl::Status()>& Chosen() {
  static auto* chosen = new std::function<absl::Status()>();
  return *chosen;
}

}  // namespace

void SetAction(CLI::App* command, std::function<absl::Status()> action) {
  command->callback([action = std::move(action)] { Chosen() = action; });
}

absl::Status RunChosenAction() { return Chosen() ? Chosen()() : absl::OkStatus(); }

}  // namespace membank
