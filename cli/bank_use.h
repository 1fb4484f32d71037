// membank bank use: the published version that workers serve.
#pragma once

#include "CLI/CLI.hpp"

namespace membank {

void AddBankUseCommand(CLI::App* bank);

}  // namespace membank
