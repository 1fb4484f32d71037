// `membank generate`: continues a prompt through a router; the text streams to stdout, the path it took to stderr.
#pragma once

#include "CLI/CLI.hpp"

namespace membank {

void AddGenerateCommand(CLI::App& app);

}  // namespace membank
