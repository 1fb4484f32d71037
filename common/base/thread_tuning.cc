#include "common/base/thread_tuning.h"

#include <unistd.h>

#include <cstdlib>

namespace membank {

void TuneThreads(char** argv) {
  if (std::getenv("OMP_WAIT_POLICY") != nullptr || std::getenv("GOMP_SPINCOUNT") != nullptr) return;
  if (setenv("GOMP_SPINCOUNT", "2000", 0) != 0) return;
  execv("/proc/self/exe", argv);
}

}  // namespace membank
