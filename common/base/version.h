// The version and commit of this build, for --version of every binary and for manifests.
#pragma once

#include <string>

namespace membank {

// "0.1.0 (commit 1a2b3c4d5e6f)"; "-dirty" after the commit when the checkout had local changes.
std::string VersionString();

}  // namespace membank
