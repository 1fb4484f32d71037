// `membank train`: learns a corpus into a bank, by the settings of model_worker/train/options.h.
#pragma once

#include "CLI/CLI.hpp"

namespace membank {

void AddTrainCommand(CLI::App& app);

}  // namespace membank
