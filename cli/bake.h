// `membank bake`: an anchor with one path of its bank, or the generic memory, as a plain Hugging Face folder.
#pragma once

#include "CLI/CLI.hpp"

namespace membank {

void AddBakeCommand(CLI::App& app);

}  // namespace membank
