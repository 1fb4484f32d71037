// `membank checkpoint`: list, verify, restore and delete the checkpoints of a bank, copy one out and in.
#pragma once

#include "CLI/CLI.hpp"

namespace membank {

void AddCheckpointCommand(CLI::App& app);

}  // namespace membank
