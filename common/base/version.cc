#include "common/base/version.h"

#include "membank_version.inc"

namespace membank {

std::string VersionString() { return MEMBANK_VERSION " (commit " MEMBANK_COMMIT ")"; }

}  // namespace membank
