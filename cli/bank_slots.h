// `membank bank slots`: init, list, plan, move, rebalance. See command.h.
#pragma once

#include "CLI/CLI.hpp"

namespace membank {

void AddBankSlotsCommand(CLI::App* bank);

}  // namespace membank
