// `membank corpus build`: documents -> packed training shards (common/corpus/packed.h) and the tree that chooses their memory.
#pragma once

#include "CLI/CLI.hpp"

namespace membank {

void AddCorpusCommand(CLI::App& app);

}  // namespace membank
