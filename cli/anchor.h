// `membank anchor`: new anchors, to be trained from scratch.
#pragma once

#include "CLI/CLI.hpp"

namespace membank {

void AddAnchorCommand(CLI::App& app);

}  // namespace membank
