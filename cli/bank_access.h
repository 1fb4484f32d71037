// `membank bank owner set|list`, `bank block`, `bank unblock`, `bank purge`: who may use which prefix of the tree.
#pragma once

#include "CLI/CLI.hpp"

namespace membank {

void AddBankAccessCommands(CLI::App* bank);

}  // namespace membank
