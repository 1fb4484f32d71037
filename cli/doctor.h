// `membank doctor`: measures this machine for a minute and says what will limit training and serving of a given bank on it.
#pragma once

#include "CLI/CLI.hpp"

namespace membank {

void AddDoctorCommand(CLI::App& app);

}  // namespace membank
