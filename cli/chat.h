// `membank chat`: a conversation through a router, in the terminal. The path is found anew on each turn by the user's message.
#pragma once

#include "CLI/CLI.hpp"

namespace membank {

void AddChatCommand(CLI::App& app);

}  // namespace membank
