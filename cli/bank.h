// `membank bank`: creates a bank's spec and slot map, shows a bank's state, lists its checkpoints, publishes versions.
#pragma once

#include "CLI/CLI.hpp"

namespace membank {

void AddBankCommand(CLI::App& app);

}  // namespace membank
