// `membank tree show` and `membank tree resolve`: what a cluster tree looks like and where it sends a text.
#pragma once

#include "CLI/CLI.hpp"

namespace membank {

void AddTreeCommand(CLI::App& app);

}  // namespace membank
